//! The display of progress: bars that stay in place on a terminal, else lines as they change.

use std::{collections::HashMap, io::IsTerminal};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Line, convergence::STEPS};

pub enum View {
    Quiet,
    Plain(HashMap<String, String>),
    Bars(Box<Bars>),
}

impl View {
    pub fn for_stdout() -> Self {
        if std::io::stdout().is_terminal() {
            Self::Bars(Box::new(Bars::new()))
        } else {
            Self::Plain(HashMap::new())
        }
    }

    pub fn show(&mut self, line: &Line) {
        match self {
            Self::Quiet => {}
            Self::Plain(shown) => {
                if let Some(text) = news(shown, line) {
                    println!("{text}");
                }
            }
            Self::Bars(bars) => bars.show(line),
        }
    }

    /// Leaves what is shown, and the cursor below it.
    pub fn end(&mut self) {
        if let Self::Bars(bars) = self {
            bars.bars.values().for_each(ProgressBar::abandon);
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.end();
    }
}

/// The line to print when it says something new. A countdown is told once.
fn news(shown: &mut HashMap<String, String>, line: &Line) -> Option<String> {
    let before = shown.insert(line.label.clone(), line.text.clone());
    let counts_down = |text: &str| text.starts_with("Waiting ");
    match before {
        Some(before) if before == line.text => None,
        Some(before) if counts_down(&before) && counts_down(&line.text) => None,
        None if line.text.is_empty() => None,
        _ => Some(format!("{}: {}", line.label, line.text)),
    }
}

pub struct Bars {
    all: MultiProgress,
    bars: HashMap<String, ProgressBar>,
    with_bar: ProgressStyle,
    text_only: ProgressStyle,
}

impl Bars {
    fn new() -> Self {
        let style = |template| {
            ProgressStyle::with_template(template).expect("the template is a constant that parses")
        };
        Self {
            all: MultiProgress::with_draw_target(ProgressDrawTarget::stdout()),
            bars: HashMap::new(),
            with_bar: style("{prefix}: {msg:9} [{bar:51}]").progress_chars("=> "),
            text_only: style("{prefix}: {msg}"),
        }
    }

    fn show(&mut self, line: &Line) {
        let bar = self.bars.entry(line.label.clone()).or_insert_with(|| {
            let bar = ProgressBar::new(STEPS).with_prefix(line.label.clone());
            self.all.add(bar)
        });
        bar.set_style(match line.steps {
            Some(_) => self.with_bar.clone(),
            None => self.text_only.clone(),
        });
        bar.set_position(line.steps.unwrap_or_default());
        bar.set_message(line.text.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_tell_each_change_once() {
        let mut shown = HashMap::new();
        let mut tell = |label: &str, text: &str| news(&mut shown, &Line::text(label, text));
        assert_eq!(tell("1/1", ""), None);
        assert_eq!(tell("1/1", "running").as_deref(), Some("1/1: running"));
        assert_eq!(tell("1/1", "running"), None);
        assert!(tell("verify", "Waiting 5 seconds to verify").is_some());
        assert_eq!(tell("verify", "Waiting 4 seconds to verify"), None);
        assert!(tell("verify", "Service x converged").is_some());
    }
}
