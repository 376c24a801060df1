//! `weft watch`: what happens on a node and in the cluster, as it happens.

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::Result;
use jiff::tz::TimeZone;

use super::args::{Format, WatchArgs};
use super::table::sanitize;
use super::view::target;
use crate::events::EventRecord;

pub(super) fn watch(arguments: &WatchArgs, out: &mut impl Write) -> Result<()> {
    let WatchArgs { target: asked, output, count, level } = arguments;
    let admin = target(asked)?;
    let zone = TimeZone::system();
    let mut left = *count;
    let mut failed = Ok(());
    let begun = || eprintln!("watching; ctrl-C ends it");
    let ended = admin.watch(begun, |record| {
        // What was missed may have been of any level.
        if level.is_some_and(|least| record.level < least.level()) && record.seq > 0 {
            return ControlFlow::Continue(());
        }
        failed = print(&record, output.output, &zone, out);
        left = left.map(|left| left.saturating_sub(1));
        if failed.is_err() || left == Some(0) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    failed?;
    ended
}

fn print(
    record: &EventRecord,
    format: Format,
    zone: &TimeZone,
    out: &mut impl Write,
) -> Result<()> {
    match format {
        Format::Json => {
            serde_json::to_writer(&mut *out, record)?;
            writeln!(out)?;
        }
        Format::Table => writeln!(out, "{}", line(record, zone))?,
    }
    // Whoever reads wants to see it now, also through a pipe.
    out.flush()?;
    Ok(())
}

/// Time, level, code, what happened, what it is about.
fn line(record: &EventRecord, zone: &TimeZone) -> String {
    let time = record.time.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string();
    let about = record.about.iter().map(|(name, value)| format!(" {name}={value}"));
    let (level, code) = (record.level.name(), &record.code);
    let text =
        format!("{time}  {level:<5}  {code:<18}  {}{}", record.text, about.collect::<String>());
    sanitize(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Level;

    #[test]
    fn an_event_is_one_line_that_steers_no_terminal() {
        let record = EventRecord {
            seq: 7,
            time: "2026-11-21T14:05:06.123Z".parse().unwrap(),
            node: "n1".to_owned(),
            code: "node-up".to_owned(),
            level: Level::Info,
            text: "node n2\u{1b}[2J is up".to_owned(),
            about: [("underlay".to_owned(), "192.0.2.2".to_owned())].into(),
        };
        assert_eq!(
            line(&record, &TimeZone::UTC),
            "14:05:06  info   node-up             node n2\u{fffd}[2J is up underlay=192.0.2.2"
        );
    }
}
