//! What goes to standard output: each command makes one value, and here it becomes a table or JSON.

use crate::exit::Failure;
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// `--output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables for people.
    Table,
    /// One JSON value.
    Json,
    /// A JSON value on each line: one for each thing.
    Jsonl,
}

impl Format {
    /// Whether a program reads it.
    pub(crate) fn is_json(self) -> bool {
        self != Format::Table
    }
}

/// A part of what a command shows to people.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Block {
    /// One line of text.
    Line(String),
    /// A table with one row for each thing. Columns whose header begins with `>` are flush right.
    Rows(&'static [&'static str], Vec<Vec<String>>),
    /// Facts about one thing; those with an empty value are left out.
    Facts(Vec<(&'static str, String)>),
}

/// The result of a command.
pub(crate) trait Report {
    /// The whole of it, for programs.
    fn json(&self) -> Value;
    /// The same for people.
    fn blocks(&self) -> Vec<Block>;
}

/// Things that are gone now.
#[derive(Debug)]
pub(crate) struct Deleted {
    /// What they were: "ring", "capture"...
    pub(crate) noun: &'static str,
    pub(crate) names: Vec<String>,
}

impl Report for Deleted {
    fn json(&self) -> Value {
        serde_json::json!({ "deleted": self.names })
    }

    fn blocks(&self) -> Vec<Block> {
        self.names
            .iter()
            .map(|name| Block::Line(format!("deleted {} {name}", self.noun)))
            .collect()
    }
}

/// The version of this program.
#[derive(Debug)]
pub(crate) struct Version;

impl Report for Version {
    fn json(&self) -> Value {
        serde_json::json!({ "version": env!("CARGO_PKG_VERSION") })
    }

    fn blocks(&self) -> Vec<Block> {
        vec![Block::Line(
            concat!("fluxctl ", env!("CARGO_PKG_VERSION")).to_owned(),
        )]
    }
}

/// Prints the result of a command.
pub(crate) fn print(format: Format, report: &impl Report) -> Result<(), Failure> {
    let text = match format {
        Format::Table => render(&report.blocks()),
        Format::Json => format!("{:#}\n", report.json()),
        Format::Jsonl => lines(&report.json()),
    };
    write(text.as_bytes())
}

/// A line for each of several values, or for the one that there is.
fn lines(value: &Value) -> String {
    let values = value
        .as_array()
        .map_or(std::slice::from_ref(value), |all| all);
    values.iter().map(|one| format!("{one}\n")).collect()
}

/// Results that come one after another and are one value all the same: in JSON the elements of an array.
#[derive(Debug)]
pub(crate) struct Series {
    format: Format,
    begun: bool,
}

impl Series {
    pub(crate) fn new(format: Format) -> Series {
        Series {
            format,
            begun: false,
        }
    }

    /// Prints the next one.
    pub(crate) fn print(&mut self, report: &impl Report) -> Result<(), Failure> {
        if self.format != Format::Json {
            return print(self.format, report);
        }
        let comma = if self.begun { "," } else { "[" };
        self.begun = true;
        write(format!("{comma}\n{:#}", report.json()).as_bytes())
    }

    /// Ends the value.
    pub(crate) fn end(self) -> Result<(), Failure> {
        match (self.format, self.begun) {
            (Format::Json, true) => write(b"\n]\n"),
            (Format::Json, false) => write(b"[]\n"),
            _ => Ok(()),
        }
    }
}

/// Writes to standard output at once.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let done = stdout.write_all(bytes).and_then(|()| stdout.flush());
    done.map_err(|error| Failure::from_io("write to standard output", &error))
}

/// Says something on standard error. Nobody may be there to read it, which is no reason to fail.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Blocks as text, parted by empty lines where a table begins or ends.
pub(crate) fn render(blocks: &[Block]) -> String {
    let mut text = String::new();
    for (index, block) in blocks.iter().enumerate() {
        let lines_before = index > 0 && matches!(blocks[index - 1], Block::Line(_));
        if index > 0 && !(lines_before && matches!(block, Block::Line(_))) {
            text.push('\n');
        }
        match block {
            Block::Line(line) => text.push_str(&printable(line)),
            Block::Rows(header, rows) => text.push_str(&table(header, rows)),
            Block::Facts(facts) => text.push_str(&facts_table(facts)),
        }
        text.push('\n');
    }
    text
}

fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = plain_table();
    table.set_header(header.iter().map(|name| name.trim_start_matches('>')));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index).filter(|_| name.starts_with('>')) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    trimmed(&table)
}

fn facts_table(facts: &[(&str, String)]) -> String {
    let mut table = plain_table();
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([*name, &printable(value)]);
    }
    trimmed(&table)
}

/// No frames and no wrapping, so that a line stays a line for grep and awk.
fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// The table's lines without the padding at both ends.
fn trimmed(table: &Table) -> String {
    let lines: Vec<String> = table
        .lines()
        .map(|line| {
            line.strip_prefix(' ')
                .unwrap_or(&line)
                .trim_end()
                .to_owned()
        })
        .collect();
    lines.join("\n")
}

/// The text without control characters: names come out of shared memory and off the wire, and this goes to a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// A rate in SI units with three digits: `rate(1_480_000.0, "bit/s")` is "1.48 Mbit/s".
pub(crate) fn rate(value: f64, unit: &str) -> String {
    const PREFIXES: [&str; 5] = ["", "k", "M", "G", "T"];
    let mut value = value.max(0.0);
    let mut step = 0;
    // 999.5 would be printed as 1000.
    while value >= 999.5 && step + 1 < PREFIXES.len() {
        value /= 1000.0;
        step += 1;
    }
    let decimals = match (step, value) {
        (0, _) => usize::from(value > 0.0 && value < 10.0 && value.fract() != 0.0),
        (_, value) if value < 9.995 => 2,
        (_, value) if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}{unit}", PREFIXES[step])
}

/// A count with its thousands apart: 1,234,567. No blanks, so that it stays one column for awk.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Counts by reason on one line, those that are not zero: "filtered 5, oversize 1".
pub(crate) fn reasons<'a>(counts: impl IntoIterator<Item = (&'a str, u64)>) -> String {
    let parts: Vec<String> = counts
        .into_iter()
        .filter(|(_, number)| *number > 0)
        .map(|(reason, number)| format!("{reason} {}", count(number)))
        .collect();
    parts.join(", ")
}

/// The same of counts as the API has them.
pub(crate) fn by_reason(counts: &BTreeMap<String, u64>) -> String {
    reasons(counts.iter().map(|(reason, n)| (reason.as_str(), *n)))
}

/// That a text for people holds all of these parts.
#[cfg(test)]
#[track_caller]
pub(crate) fn assert_shows(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_frame_and_no_space_at_the_ends() {
        let rows = vec![
            vec!["cisco".into(), "5".into()],
            vec!["b".into(), "1000".into()],
        ];
        let text = render(&[Block::Rows(&["NAME", ">FRAMES"], rows)]);
        assert_eq!(text, "NAME   FRAMES\ncisco       5\nb        1000\n");
    }

    #[test]
    fn several_values_have_a_line_each() {
        let value = serde_json::json!([{"name": "a"}, {"name": "b"}]);
        assert_eq!(lines(&value), "{\"name\":\"a\"}\n{\"name\":\"b\"}\n");
        assert_eq!(lines(&value[0]), "{\"name\":\"a\"}\n");
        assert_eq!(lines(&serde_json::json!([])), "");
    }

    #[test]
    fn empty_facts_are_left_out() {
        let facts = vec![
            ("name", "cisco".to_owned()),
            ("reason", String::new()),
            ("size", "100 MiB".to_owned()),
        ];
        assert_eq!(
            render(&[Block::Facts(facts)]),
            "name  cisco\nsize  100 MiB\n"
        );
    }

    #[test]
    fn tables_stand_apart_and_lines_together() {
        let line = |text: &str| Block::Line(text.into());
        let facts = Block::Facts(vec![("a", "b".into())]);
        assert_eq!(
            render(&[line("x"), line("y"), facts, line("z")]),
            "x\ny\n\na  b\n\nz\n"
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let text = render(&[Block::Rows(&["NAME"], vec![vec!["a\x1b[2J\n".into()]])]);
        assert_eq!(text, "NAME\na?[2J?\n");
    }

    #[test]
    fn rates_are_si_with_three_digits() {
        for (value, text) in [
            (0.0, "0 pps"),
            (0.5, "0.5 pps"),
            (12.0, "12 pps"),
            (999.0, "999 pps"),
            (999.7, "1.00 kpps"),
            (148_809.0, "149 kpps"),
            (14_880_952.0, "14.9 Mpps"),
            (-3.0, "0 pps"),
        ] {
            assert_eq!(rate(value, "pps"), text);
        }
        assert_eq!(rate(9.87e9, "bit/s"), "9.87 Gbit/s");
        assert_eq!(rate(5e17, "bit/s"), "500000 Tbit/s");
    }

    #[test]
    fn counts_have_their_thousands_apart() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000_000), "1,000,000");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn reasons_that_did_not_happen_are_not_shown() {
        assert_eq!(
            reasons([("filtered", 5), ("oversize", 0), ("other", 1000)]),
            "filtered 5, other 1,000"
        );
    }
}
