//! A table, as Markdown or in aligned columns.

/// Rows of words under a title.
#[derive(Debug)]
pub struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    pub fn new(title: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(ToString::to_string).collect();
        Self { title: title.into(), columns, rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row; what it does not say stays empty.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let mut row: Vec<String> = cells.into_iter().map(Into::into).collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// Adds a line below the table.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub fn print(&self, markdown: bool) {
        if markdown {
            println!("### {}\n", self.title);
            println!("| {} |", self.columns.join(" | "));
            println!("|{}", " --- |".repeat(self.columns.len()));
            for row in &self.rows {
                println!("| {} |", row.join(" | "));
            }
        } else {
            println!("{}\n", self.title);
            let all = || std::iter::once(&self.columns).chain(&self.rows);
            let width = |column: usize| {
                all().map(|row| row[column].chars().count()).max().unwrap_or_default()
            };
            let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
            for row in all() {
                let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
                println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
            }
        }
        if !self.notes.is_empty() {
            println!("\n{}", self.notes.join(" "));
        }
        println!();
    }
}
