//! The picture of the README: what each strategy costs on each file system, in time and in space.
//!
//! ```text
//!                 time for 8 disks            space for 8 disks
//! ext4   overlay  ▇▇▇ 0.7 ms                  ▇▇ 96 KiB
//!        copy     ▇▇▇▇▇▇▇▇▇▇▇▇▇▇ 9.8 s        ▇▇▇▇▇▇▇▇▇▇▇▇ 10.4 GiB
//! btrfs  …                                    logarithmic: a grid line is a factor of ten
//! ```
//!
//! An SVG without scripts or fonts of its own; its colours are told apart without seeing them in
//! colour, too, since each bar carries its name and its value.

use std::fmt::Write as _;

/// One bar of each kind.
#[derive(Clone, Debug)]
pub struct Bar {
    /// The file system.
    pub group: String,
    /// The strategy.
    pub name: String,
    /// Its time.
    pub seconds: f64,
    /// Its time, in words.
    pub time: String,
    /// The space it takes.
    pub bytes: u64,
    /// The space, in words.
    pub space: String,
}

const ROW: usize = 24;
const TOP: usize = 56;
const LEFT: usize = 130;
const PANEL: usize = 300;
const GAP: usize = 90;
const WIDTH: usize = LEFT + 2 * PANEL + 2 * GAP;

/// Draws `bars`, in their order, under `title`.
pub fn draw(title: &str, bars: &[Bar]) -> String {
    let height = TOP + bars.len() * ROW + 16;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\" role=\"img\">\n\
         <title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        title = escape(title)
    );
    text(&mut svg, 12, 20, "start", "bold", title);
    let times = Scale::over(bars.iter().map(|bar| bar.seconds));
    let spaces = Scale::over(bars.iter().map(|bar| bar.bytes as f64));
    let panels = [(LEFT, "time", &times), (LEFT + PANEL + GAP, "space", &spaces)];
    for (left, heading, scale) in panels {
        text(&mut svg, left, TOP - 12, "start", "bold", heading);
        for decade in 0..=scale.decades {
            let x = left + PANEL * decade / scale.decades.max(1);
            let _ = writeln!(
                svg,
                "<line x1=\"{x}\" y1=\"{TOP}\" x2=\"{x}\" y2=\"{}\" stroke=\"#dddddd\"/>",
                height - 12
            );
        }
    }
    for (index, bar) in bars.iter().enumerate() {
        let y = TOP + index * ROW;
        let is_first = index == 0 || bars[index - 1].group != bar.group;
        if is_first {
            text(&mut svg, 12, y + 16, "start", "bold", &bar.group);
        }
        text(&mut svg, LEFT - 8, y + 16, "end", "normal", &bar.name);
        let values = [(&times, bar.seconds, &bar.time), (&spaces, bar.bytes as f64, &bar.space)];
        for ((left, ..), (scale, value, words)) in panels.iter().zip(values) {
            let width = scale.width(value);
            let _ = writeln!(
                svg,
                "<rect x=\"{left}\" y=\"{}\" width=\"{width}\" height=\"{}\" fill=\"{}\"/>",
                y + 4,
                ROW - 8,
                colour(&bar.name)
            );
            text(&mut svg, left + width + 6, y + 16, "start", "normal", words);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// A logarithmic scale over whole decades.
struct Scale {
    lowest: f64,
    decades: usize,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let logs = || values.filter(|value| *value > 0.0).map(f64::log10).collect::<Vec<_>>();
        let logs = logs();
        let lowest = logs.iter().copied().fold(f64::INFINITY, f64::min).floor();
        let highest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil();
        if !lowest.is_finite() {
            return Self { lowest: 0.0, decades: 1 };
        }
        Self { lowest, decades: ((highest - lowest) as usize).max(1) }
    }

    /// At least a hair, so that nothing is invisible.
    fn width(&self, value: f64) -> usize {
        let share = (value.max(f64::MIN_POSITIVE).log10() - self.lowest) / self.decades as f64;
        ((share.clamp(0.0, 1.0) * PANEL as f64) as usize).max(2)
    }
}

fn text(svg: &mut String, x: usize, y: usize, anchor: &str, weight: &str, words: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\" \
         fill=\"#222222\">{}</text>",
        escape(words)
    );
}

fn escape(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Distinct for those who do not see red or green as well.
fn colour(name: &str) -> &'static str {
    match name {
        "overlay" => "#0072b2",
        "reflink" => "#009e73",
        "copy" => "#d55e00",
        _ => "#999999",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(group: &str, name: &str, seconds: f64, bytes: u64) -> Bar {
        let (time, space) = (format!("{seconds} s"), format!("{bytes} B"));
        Bar { group: group.into(), name: name.into(), seconds, time, bytes, space }
    }

    #[test]
    fn longer_is_wider_and_all_is_shown() {
        let svg =
            draw("a <b>", &[bar("ext4", "overlay", 0.001, 0), bar("ext4", "copy", 10.0, 1 << 33)]);
        for words in ["a &lt;b&gt;", "overlay", "copy", "0.001 s", "8589934592 B"] {
            assert!(svg.contains(words), "{words}\n{svg}");
        }
        assert_eq!(svg.matches(">ext4<").count(), 1);
        let scale = Scale::over([0.001, 10.0].into_iter());
        assert_eq!(scale.decades, 4);
        assert_eq!((scale.width(0.001), scale.width(0.1), scale.width(10.0)), (2, 150, 300));
        assert_eq!(Scale::over(std::iter::empty()).width(1.0), 2);
    }
}
