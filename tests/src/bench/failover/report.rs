//! What the benchmark of failovers found: for people, and as JSON.

use std::{fmt, time::Duration};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{super::report::quantile, FailoverOptions};

/// Everything measured, with verdicts.
#[derive(Debug, Serialize)]
pub struct FailoverReport {
    /// Pulled cables and black holes, each.
    pub runs: u32,
    /// Changes of an interface, in all.
    pub changes: u32,
    /// What was measured, in order.
    pub measures: Vec<Measure>,
    /// Every bound was kept.
    pub passed: bool,
}

/// One thing that was measured.
#[derive(Debug, Serialize)]
pub struct Measure {
    /// What.
    pub name: String,
    /// How it came out.
    #[serde(flatten)]
    pub result: Outcome,
    /// The bound was kept.
    pub passed: bool,
}

/// How it came out, with what it must not exceed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Milliseconds.
    Times {
        /// Half of the runs took no longer.
        p50: f64,
        /// 99 of 100 took no longer.
        p99: f64,
        /// None took longer.
        max: f64,
        /// What `bounded` must not exceed.
        bound: f64,
        /// How many runs did not exceed the bound.
        within: usize,
        /// Every run.
        samples: Vec<f64>,
    },
    /// A number.
    Count {
        /// How many.
        count: u64,
        /// What it must not exceed.
        bound: u64,
    },
}

/// What times must not exceed.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    time: Duration,
    share: f64,
}

impl Bound {
    /// 99 of 100 must keep it.
    pub const fn at_p99(time: Duration) -> Self {
        Self { time, share: 0.99 }
    }

    /// All must keep it.
    pub const fn at_most(time: Duration) -> Self {
        Self { time, share: 1.0 }
    }
}

impl FailoverReport {
    pub(super) fn new(options: FailoverOptions) -> Self {
        Self {
            runs: options.runs,
            changes: options.changes,
            measures: Vec::new(),
            passed: true,
        }
    }

    /// Adds times; nothing when there is none.
    pub(super) fn times(&mut self, name: &str, times: Vec<Duration>, bound: Bound) {
        if times.is_empty() {
            return;
        }
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let samples: Vec<f64> = times.into_iter().map(milliseconds).collect();
        let limit = milliseconds(bound.time);
        let passed = quantile(&samples, bound.share) <= limit;
        let result = Outcome::Times {
            p50: quantile(&samples, 0.5),
            p99: quantile(&samples, 0.99),
            max: quantile(&samples, 1.0),
            bound: limit,
            within: samples.iter().filter(|it| **it <= limit).count(),
            samples,
        };
        self.add(name.to_owned(), result, passed);
    }

    /// Adds a number.
    pub(super) fn count(&mut self, name: String, count: u64, bound: u64) {
        self.add(name, Outcome::Count { count, bound }, count <= bound);
    }

    fn add(&mut self, name: String, result: Outcome, passed: bool) {
        self.passed &= passed;
        self.measures.push(Measure {
            name,
            result,
            passed,
        });
    }

    /// Whether every bound was kept.
    pub fn passed(&self) -> bool {
        self.passed
    }
}

impl fmt::Display for FailoverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        table.set_header(["", "p50", "p99", "max", "bound", "within", ""]);
        for Measure {
            name,
            result,
            passed,
        } in &self.measures
        {
            let mut row = vec![name.clone()];
            match result {
                Outcome::Times {
                    p50,
                    p99,
                    max,
                    bound,
                    within,
                    samples,
                } => {
                    row.extend([p50, p99, max].map(|time| format!("{time:.0} ms")));
                    row.push(format!("≤ {bound:.0} ms"));
                    row.push(format!("{within} of {}", samples.len()));
                }
                Outcome::Count { count, bound } => {
                    row.extend(
                        ["", "", &count.to_string(), &format!("≤ {bound}"), ""].map(Into::into),
                    );
                }
            }
            row.push(if *passed { "kept" } else { "MISSED" }.into());
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}\n")?;
        write!(
            f,
            "1,000 new flows a second, one datagram each, IPv4 and IPv6 in turn.\n{}",
            if self.passed {
                "Every bound was kept."
            } else {
                "A bound was MISSED."
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> FailoverReport {
        FailoverReport::new(FailoverOptions {
            runs: 1,
            changes: 1,
            flapping: 1,
        })
    }

    #[test]
    fn a_bound_at_p99_forgives_one_of_two_hundred_and_one_for_all_none() {
        let mut times = vec![Duration::from_millis(10); 199];
        times.push(Duration::from_millis(900));
        for (bound, passed) in [
            (Bound::at_p99(Duration::from_millis(50)), true),
            (Bound::at_most(Duration::from_millis(50)), false),
            (Bound::at_most(Duration::from_millis(900)), true),
        ] {
            let mut report = report();
            report.times("a gap", times.clone(), bound);
            assert_eq!(report.passed(), passed, "{bound:?}");
        }
    }

    #[test]
    fn a_count_above_its_bound_fails_the_benchmark() {
        let mut report = report();
        report.count("moved".into(), 0, 0);
        assert!(report.passed());
        report.count("moved".into(), 1, 0);
        assert!(!report.passed());
        assert!(report.to_string().contains("MISSED"), "{report}");
    }
}
