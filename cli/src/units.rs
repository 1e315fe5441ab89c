//! Quantities as people write and read them: durations, memory, processors.

use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

const NANO: f64 = 1e9;

/// A duration in nanoseconds, as the API carries it: `90s`, `1m30s`, `1.5h`, and also days
/// (`90d`, `90days`), which the stock client refuses.
///
/// # Errors
/// Anything else, a bare number other than 0, and negative durations.
pub fn parse_nanos(text: &str) -> Result<i64> {
    if text == "0" {
        return Ok(0);
    }
    let span: Span = text
        .parse()
        .ok()
        .with_context(|| format!("`{text}` is not a duration: want one like 10s, 1m30s or 90d"))?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours())?;
    if duration.is_negative() {
        bail!("`{text}` is negative");
    }
    i64::try_from(duration.as_nanos()).with_context(|| format!("`{text}` is too long"))
}

/// Nanoseconds as Go writes a duration: `1h0m0s`, `1m30s`, `1.5s`, `200ms`.
pub fn go_duration(nanos: i64) -> String {
    let (negative, nanos) = (nanos < 0, nanos.unsigned_abs());
    let sign = if negative { "-" } else { "" };
    let text = match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", nanos as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{}ms", nanos as f64 / 1e6),
        _ => {
            let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
            let seconds = rest as f64 / NANO;
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// How long ago: `0.4s`, `59.0s`, `1m5s`, `26h0m3s`.
pub fn show_span(millis: u64) -> String {
    match millis {
        0..60_000 => format!("{:.1}s", millis as f64 / 1000.0),
        _ => go_duration((millis / 1000 * 1_000_000_000).cast_signed()),
    }
}

/// Bytes: `512`, `64m`, `1.5g`, `1GiB`; units are powers of 1024.
///
/// # Errors
/// Anything else.
pub fn parse_bytes(text: &str) -> Result<i64> {
    let lower = text.trim().to_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = lower[digits.len()..]
        .trim_end_matches('b')
        .trim_end_matches('i');
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => bail!("`{text}` is not a size: want one like 64m or 1g"),
    };
    let number: f64 = digits
        .trim()
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number >= 0.0)
        .with_context(|| format!("`{text}` is not a size: want one like 64m or 1g"))?;
    let bytes = number * (1u64 << shift) as f64;
    in_range(bytes).with_context(|| format!("`{text}` is too large: want less than 8192p"))
}

/// None where there is no such number. Every other is cut to a whole one.
fn in_range(number: f64) -> Option<i64> {
    // The first that is too large is a power of two, which is exact.
    (number < 2f64.powi(63)).then_some(number as i64)
}

/// Bytes as Docker shows them, with four significant digits: `1.952GiB`.
pub fn show_bytes(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    let before_point = (size.max(1.0).log10() as usize) + 1;
    let text = format!("{size:.*}", 4usize.saturating_sub(before_point));
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{}", UNITS[unit])
}

/// Processors in billionths: `0.5`, `2`.
///
/// # Errors
/// Anything that is no such number.
pub fn parse_nano_cpus(text: &str) -> Result<i64> {
    let cpus: f64 = text
        .parse()
        .ok()
        .filter(|cpus: &f64| cpus.is_finite() && *cpus >= 0.0)
        .with_context(|| format!("`{text}` is not a number of processors: want one like 0.5"))?;
    in_range((cpus * NANO).round())
        .with_context(|| format!("`{text}` processors are too many: want less than 9223372036"))
}

/// How long ago, in words: `About a minute`, `5 minutes`.
pub fn human_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    let some = |count: i64, unit: &str| format!("{count} {unit}");
    match (seconds, minutes, hours) {
        (..1, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (..60, ..) => some(seconds, "seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, ..60, _) => some(minutes, "minutes"),
        (.., 1) => "About an hour".to_owned(),
        (.., ..48) => some(hours, "hours"),
        (.., ..336) => some(hours / 24, "days"),
        (.., ..1440) => some(hours / 24 / 7, "weeks"),
        (.., ..17520) => some(hours / 24 / 30, "months"),
        _ => some(hours / 24 / 365, "years"),
    }
}

/// `5 minutes ago` for a time of the API; empty when there is none.
pub fn ago(time: Option<&str>, now: Timestamp) -> String {
    match time.and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(time) => format!("{} ago", human_duration(now.duration_since(time))),
        None => String::new(),
    }
}

/// An API time as Go prints it: `2026-11-21 10:00:00.123 +0000 UTC`.
pub fn go_time(time: Option<&str>) -> String {
    match time.and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(time) => time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn durations_read_as_they_are_written(nanos in 0..=i64::MAX, scale in 0u32..63) {
            let nanos = nanos >> scale;
            prop_assert_eq!(parse_nanos(&go_duration(nanos)).unwrap(), nanos);
        }

        #[test]
        fn any_text_is_a_quantity_or_an_error(
            text in "[-+.0-9]{0,24}( ?(d|days|h|m|s|ms|us|ns|y|mo|w|k|KiB|e9))?[.0-9smh]{0,6}|.{0,20}",
        ) {
            let not_negative = |read: Result<i64>| read.is_err() || read.is_ok_and(|it| it >= 0);
            prop_assert!(not_negative(parse_nanos(&text)));
            prop_assert!(not_negative(parse_bytes(&text)));
            prop_assert!(not_negative(parse_nano_cpus(&text)));
        }
    }

    #[test]
    fn durations_are_read() {
        const SECOND: i64 = 1_000_000_000;
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("10s", 10 * SECOND),
            ("1m30s", 90 * SECOND),
            ("1.5h", 5400 * SECOND),
            ("250ms", SECOND / 4),
            ("7us", 7_000),
            ("2160h", 2160 * 3600 * SECOND),
            ("90days", 2160 * 3600 * SECOND),
            ("90d", 2160 * 3600 * SECOND),
        ] {
            assert_eq!(parse_nanos(text).unwrap(), nanos, "{text}");
        }
        for text in ["", "10", "s", "-1s", "1 fortnight", "300000h300000d300000w"] {
            assert!(parse_nanos(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (5_000_000_000, "5s"),
            (90_000_000_000, "1m30s"),
            (7_776_000_000_000_000, "2160h0m0s"),
            (1_500_000_000, "1.5s"),
            (200_000_000, "200ms"),
            (1_500, "1.5µs"),
        ] {
            assert_eq!(go_duration(nanos), text);
        }
    }

    #[test]
    fn spans_are_exact_as_long_as_they_are_short() {
        for (millis, text) in [
            (0, "0.0s"),
            (420, "0.4s"),
            (65_900, "1m5s"),
            (93_603_000, "26h0m3s"),
        ] {
            assert_eq!(show_span(millis), text);
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("512", 512),
            ("64m", 64 << 20),
            ("1.5G", 3 << 29),
            ("1GiB", 1 << 30),
            ("10kb", 10240),
            ("8191p", 8191 << 50),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "m", "1x", "-1m", "nan"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        for text in ["8192p", "9223372036854775808", "1e300"] {
            let error = parse_bytes(text).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("`{text}` is too large: want less than 8192p")
            );
        }
        for (bytes, text) in [
            (0, "0B"),
            (1000, "1000B"),
            (64 << 20, "64MiB"),
            (2_096_000_000, "1.952GiB"),
            (15 << 30, "15GiB"),
        ] {
            assert_eq!(show_bytes(bytes), text);
        }
    }

    #[test]
    fn processors_are_read() {
        assert_eq!(parse_nano_cpus(".1").unwrap(), 100_000_000);
        assert_eq!(parse_nano_cpus("2").unwrap(), 2_000_000_000);
        assert!(parse_nano_cpus("-1").is_err());
        assert!(parse_nano_cpus("inf").is_err());
    }

    #[test]
    fn durations_are_told_as_docker_tells_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (300, "5 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (3 * 86400, "3 days"),
            (15 * 86400, "2 weeks"),
            (90 * 86400, "3 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(
                human_duration(SignedDuration::from_secs(seconds)),
                text,
                "{seconds}"
            );
        }
    }
}
