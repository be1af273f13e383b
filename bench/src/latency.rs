//! Latencies: high dynamic range histograms, whole and by interval.
//!
//! Nanoseconds in, three significant digits, nothing thrown away: what is above the range is recorded at its upper end. The log is
//! the `.hlog` of HdrHistogram's tools, one line an interval, so that a run can be plotted over time with them.

use crate::clock::Moment;
use crate::error::BenchError;
use core::time::Duration;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use serde::Serialize;
use std::io::Write;
use std::time::UNIX_EPOCH;

/// Upper end of the range: ten minutes.
const NANOS_MAX: u64 = 600_000_000_000;
const DIGITS: u8 = 3;
/// Most intervals kept; the interval of a long run is longer instead.
const INTERVALS_MAX: u32 = 120;

/// The latencies of a run.
#[derive(Clone, Debug)]
pub struct Latencies {
    total: Histogram<u64>,
    done: Vec<Interval>,
    current: Option<Interval>,
    interval: Duration,
}

#[derive(Clone, Debug)]
struct Interval {
    began: Moment,
    /// On the wall clock, since 1970.
    began_wall: Duration,
    ended: Moment,
    histogram: Histogram<u64>,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize)]
pub struct LatencySummary {
    /// Median.
    pub p50: f64,
    /// 90 of 100 were at most this.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NANOS_MAX, DIGITS).expect("the bounds are constant and valid")
}

impl Latencies {
    /// For a run of about `run`.
    pub fn new(run: Duration) -> Latencies {
        Latencies {
            total: histogram(),
            done: Vec::new(),
            current: None,
            interval: (run / INTERVALS_MAX).max(Duration::from_secs(1)),
        }
    }

    /// Begins an interval now: at the start of each span that is measured.
    pub fn begin(&mut self, now: Moment, wall: Duration) {
        self.end(now);
        self.current = Some(Interval { began: now, began_wall: wall, ended: now, histogram: histogram() });
    }

    /// Ends the interval: latencies that are recorded from here on count only in the whole.
    pub fn end(&mut self, now: Moment) {
        if let Some(mut interval) = self.current.take() {
            interval.ended = now;
            if self.done.len() < 2 * INTERVALS_MAX as usize {
                self.done.push(interval);
            }
        }
    }

    /// Records `count` records that took `nanos` each and ended now.
    pub fn record(&mut self, now: Moment, nanos: u64, count: u64) {
        self.total.saturating_record_n(nanos.max(1), count);
        if let Some(interval) = &mut self.current {
            interval.histogram.saturating_record_n(nanos.max(1), count);
            let age = now.since(interval.began);
            if age >= self.interval {
                let wall = interval.began_wall + age;
                self.begin(now, wall);
            }
        }
    }

    /// Adds another's to the whole. They are in no interval.
    pub fn absorb(&mut self, other: &Latencies) {
        self.total.add(&other.total).expect("all histograms have the same bounds");
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.total.len()
    }

    /// The whole run's percentiles.
    pub fn summary(&self) -> LatencySummary {
        let micros = |nanos: u64| (nanos as f64 / 100.0).round() / 10.0;
        let at = |quantile| micros(self.total.value_at_quantile(quantile));
        LatencySummary {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(self.total.max()),
        }
    }

    /// Writes the intervals as an HdrHistogram log. Its values are nanoseconds, its maxima milliseconds.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_log(&self, out: &mut impl Write, title: &str) -> Result<(), BenchError> {
        let failed = |why: String| BenchError::LatencyLog(why);
        let intervals: Vec<&Interval> = self.done.iter().chain(&self.current).collect();
        let start = UNIX_EPOCH + intervals.first().map_or(Duration::ZERO, |first| first.began_wall);
        let mut serializer = V2DeflateSerializer::new();
        let mut builder = IntervalLogWriterBuilder::new();
        for line in title.lines() {
            builder.add_comment(line);
        }
        let mut log = builder
            .with_start_time(start)
            .with_max_value_divisor(1e6)
            .begin_log_with(out, &mut serializer)
            .map_err(|e| failed(e.to_string()))?;
        for interval in intervals {
            let lasted = interval.ended.since(interval.began);
            log.write_histogram(&interval.histogram, interval.began_wall, lasted, None)
                .map_err(|e| failed(format!("{e:?}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    fn at(millis: u64) -> Moment {
        Moment::default().after(Duration::from_millis(millis))
    }

    #[test]
    fn percentiles_are_of_all_records() {
        let mut latencies = Latencies::new(Duration::from_secs(1));
        latencies.begin(at(0), Duration::ZERO);
        latencies.record(at(1), 100_000, 98);
        latencies.record(at(1), 5_000_000, 1);
        latencies.end(at(2));
        latencies.record(at(3), u64::MAX, 1);
        let summary = latencies.summary();
        assert!((summary.p50 - 100.0).abs() < 0.2 && (summary.p99 - 5000.0).abs() < 10.0, "{summary:?}");
        assert!((summary.max / 6e8 - 1.0).abs() < 0.001, "what is above the range stays in: {summary:?}");
        assert_eq!(latencies.count(), 100);
    }

    #[test]
    fn the_log_is_read_by_the_format_s_own_reader() {
        let mut latencies = Latencies::new(Duration::from_secs(3));
        latencies.begin(at(0), Duration::from_secs(1_700_000_000));
        for second in 0..3u64 {
            for record in 0..10u64 {
                latencies.record(at(second * 1000 + 100 * (record + 1)), 1_000_000 * (second + 1), 1);
            }
        }
        latencies.end(at(3001));
        let mut text = Vec::new();
        latencies.write_log(&mut text, "a title\nof two lines").unwrap();
        let intervals: Vec<_> = IntervalLogIterator::new(&text)
            .filter_map(|entry| match entry.unwrap() {
                LogEntry::Interval(interval) => Some(interval),
                _ => None,
            })
            .collect();
        let decode = |text: &str| {
            let bytes = decode_base64(text);
            Deserializer::new().deserialize::<u64, _>(&mut bytes.as_slice()).unwrap()
        };
        let counts: Vec<u64> = intervals.iter().map(|i| decode(i.encoded_histogram()).len()).collect();
        assert_eq!(counts.iter().sum::<u64>(), 30);
        assert_eq!(counts[..3], [10, 10, 10]);
        assert!((decode(intervals[2].encoded_histogram()).max() as f64 / 3e6 - 1.0).abs() < 0.001);
    }

    fn decode_base64(text: &str) -> Vec<u8> {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digits = text
            .bytes()
            .filter(|b| *b != b'=')
            .map(|b| ALPHABET.iter().position(|a| *a == b).unwrap() as u32);
        let (mut bits, mut held, mut out) = (0u32, 0u32, Vec::new());
        for digit in digits {
            bits = (bits << 6) | digit;
            held += 6;
            if held >= 8 {
                held -= 8;
                out.push((bits >> held) as u8);
                bits &= (1 << held) - 1;
            }
        }
        out
    }
}
