//! Progress of long work, drawn on standard error while a person is watching.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Output;
use crate::control::{Control, Event};

/// A control that draws what happens, or one that tells nobody if nobody is watching. The drawing
/// goes when the guard is dropped.
pub(crate) fn draw(output: &Output) -> (Control, Drawing) {
    if !output.draws_progress() {
        return (Control::new(), Drawing(None));
    }
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    let drawing = Drawing(Some(bar.clone()));
    (Control::new().with_observer(move |event| show(&bar, event)), drawing)
}

/// What is drawn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Drawing(Option<ProgressBar>);

impl Drawing {
    /// Has `work` write lines of its own between what is drawn.
    pub(crate) fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }

    /// Whether anything is drawn.
    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn show(bar: &ProgressBar, event: &Event) {
    match event {
        Event::Waiting { holder: Some(holder) } => bar.set_message(format!("waiting for {holder}")),
        Event::Waiting { holder: None } => bar.set_message("waiting for someone else"),
        Event::Extracting { .. } => bar.set_message("extracting"),
        Event::Copying { copied_bytes, total_bytes, .. } => {
            bar.set_message("copying");
            draw_position(bar, *copied_bytes, Some(*total_bytes));
        }
        Event::Checking { checked_tables, total_tables } => {
            bar.set_message(format!("checking, table {checked_tables} of {total_tables}"));
        }
        Event::Comparing { compared_bytes, total_bytes } => {
            bar.set_message("comparing");
            draw_position(bar, *compared_bytes, Some(*total_bytes));
        }
        Event::Verifying { verified_bytes, total_bytes, .. } => {
            bar.set_message("verifying");
            draw_position(bar, *verified_bytes, Some(*total_bytes));
        }
        Event::Progress { source_bytes, source_length, .. } => {
            draw_position(bar, *source_bytes, *source_length);
        }
    }
}

fn draw_position(bar: &ProgressBar, position: u64, length: Option<u64>) {
    if let Some(length) = length
        && bar.length() != Some(length)
    {
        bar.set_style(style());
        bar.set_length(length);
    }
    bar.set_position(position);
}

fn style() -> ProgressStyle {
    // The template is ours and parses; the default style would do as well.
    ProgressStyle::with_template(
        "{wide_bar} {binary_bytes} of {binary_total_bytes}, {eta} left {msg}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
}
