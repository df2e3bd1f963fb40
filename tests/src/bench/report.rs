//! What the benchmark found: for people, and as JSON.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{
    generator::Sample,
    hooks::HookResult,
    rows::{Id, Ratio, Row},
};

/// Everything measured, with verdicts.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How often every row was measured.
    pub rounds: usize,
    /// What a packet cost in each row.
    pub rows: Vec<RowResult>,
    /// How rows compare, measured in the same round.
    pub ratios: Vec<RatioResult>,
    /// What the programs for names add to a packet that is not DNS.
    pub hooks: Vec<HookResult>,
    /// No gate was missed.
    pub passed: bool,
}

/// What a packet cost.
#[derive(Debug, Serialize)]
pub struct RowResult {
    /// The configuration.
    pub name: &'static str,
    /// Median nanoseconds of processor time for a packet, without the generator's.
    pub ns: f64,
    /// The least of all rounds.
    pub least_ns: f64,
    /// Packets that a processor would carry each second, from the median.
    pub packets_per_second: f64,
    /// The smallest share of packets that arrived.
    pub arrived: f64,
}

/// How many times faster one row is than another.
#[derive(Debug, Serialize)]
pub struct RatioResult {
    /// This row …
    pub faster: &'static str,
    /// … compared with this one.
    pub than: &'static str,
    /// Median of the rounds.
    pub median: f64,
    /// Lower quartile.
    pub lower: f64,
    /// Upper quartile.
    pub upper: f64,
    /// The median must not be below this.
    pub gate: Option<f64>,
    /// What it should reach.
    pub goal: Option<f64>,
    /// The gate was reached, or there is none.
    pub passed: bool,
}

impl Report {
    pub(super) fn new(rows: &[Row], ratios: &[Ratio], rounds: &[Vec<Sample>]) -> Self {
        let costs: Vec<Vec<f64>> = (0..rows.len()).map(|row| net_costs(rounds, row)).collect();
        let row_of = |id: Id| rows.iter().position(|row| row.id == id);
        let results = rows.iter().enumerate().map(|(index, row)| {
            let ns = quantile(&costs[index], 0.5);
            let arrived = rounds.iter().map(|round| round[index].arrived_share());
            RowResult {
                name: row.name,
                ns,
                least_ns: quantile(&costs[index], 0.0),
                packets_per_second: 1e9 / ns,
                arrived: arrived.fold(1.0, f64::min),
            }
        });
        let ratios = ratios.iter().filter_map(|ratio| {
            let (of, to) = (row_of(ratio.of)?, row_of(ratio.to)?);
            let paired = costs[to].iter().zip(&costs[of]);
            let values: Vec<f64> = paired.map(|(to, of)| to / of).collect();
            let median = quantile(&values, 0.5);
            Some(RatioResult {
                faster: rows[of].name,
                than: rows[to].name,
                median,
                lower: quantile(&values, 0.25),
                upper: quantile(&values, 0.75),
                gate: ratio.gate,
                goal: ratio.goal,
                passed: ratio.gate.is_none_or(|gate| median >= gate),
            })
        });
        let (rows, ratios): (Vec<_>, Vec<_>) = (results.collect(), ratios.collect());
        let passed = ratios.iter().all(|ratio| ratio.passed);
        Self {
            rounds: rounds.len(),
            rows,
            ratios,
            hooks: Vec::new(),
            passed,
        }
    }

    pub(super) fn with_hooks(self, hooks: Vec<HookResult>) -> Self {
        Self {
            passed: self.passed && hooks.iter().all(|hook| hook.passed),
            hooks,
            ..self
        }
    }

    /// Whether every gate was reached.
    pub fn passed(&self) -> bool {
        self.passed
    }
}

/// A row's cost in every round, without the generator's in the same round (the first row, whose
/// own cost stays what it is).
fn net_costs(rounds: &[Vec<Sample>], row: usize) -> Vec<f64> {
    let cost = |round: &Vec<Sample>| {
        let generator = if row == 0 { 0.0 } else { round[0].ns() };
        (round[row].ns() - generator).max(1.0)
    };
    rounds.iter().map(cost).collect()
}

/// Between the two nearest values, as most programs define it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index into a few values"
)]
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = share * (sorted.len().saturating_sub(1)) as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    let (Some(low), Some(high)) = (sorted.get(low), sorted.get(high)) else {
        return f64::NAN;
    };
    low + (high - low) * position.fract()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = Table::new();
        rows.load_preset(presets::UTF8_BORDERS_ONLY);
        rows.set_header([
            "a packet's cost on the router",
            "ns",
            "least",
            "packets/s",
            "arrived",
        ]);
        for row in &self.rows {
            rows.add_row([
                row.name.to_owned(),
                format!("{:.0}", row.ns),
                format!("{:.0}", row.least_ns),
                format!("{:.2} M", row.packets_per_second / 1e6),
                format!("{:.1} %", 100.0 * row.arrived),
            ]);
        }
        let mut ratios = Table::new();
        ratios.load_preset(presets::UTF8_BORDERS_ONLY);
        ratios.set_header(["times as fast", "median", "quartiles", "gate", "goal", ""]);
        for ratio in &self.ratios {
            let wanted = |bound: Option<f64>| bound.map_or(String::new(), |b| format!("≥ {b:.2}"));
            let verdict = match (ratio.gate, ratio.goal) {
                _ if !ratio.passed => "MISSED",
                (_, Some(goal)) if ratio.median >= goal => "goal reached",
                (Some(_), _) => "passed",
                (None, _) => "",
            };
            ratios.add_row([
                format!("{} / {}", ratio.faster, ratio.than),
                format!("{:.2}", ratio.median),
                format!("{:.2} – {:.2}", ratio.lower, ratio.upper),
                wanted(ratio.gate),
                wanted(ratio.goal),
                verdict.to_owned(),
            ]);
        }
        let mut hooks = Table::new();
        hooks.load_preset(presets::UTF8_BORDERS_ONLY);
        hooks.set_header([
            "added to a packet that is not DNS",
            "ns",
            "quartiles",
            "gate",
            "",
        ]);
        for hook in &self.hooks {
            hooks.add_row([
                hook.name.to_owned(),
                format!("{:.0}", hook.ns),
                format!("{:.0} – {:.0}", hook.lower, hook.upper),
                format!("≤ {:.0}", hook.gate),
                if hook.passed { "passed" } else { "MISSED" }.to_owned(),
            ]);
        }
        for table in [&mut rows, &mut ratios, &mut hooks] {
            for column in table.column_iter_mut().skip(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(f, "{rows}\n")?;
        writeln!(f, "{ratios}\n")?;
        writeln!(f, "{hooks}\n")?;
        write!(
            f,
            "UDP frames of 64 bytes, 4096 flows, one processor, {} rounds. Costs include the veth \
             delivery to the next hop; only ratios compare between machines.\n{}",
            self.rounds,
            if self.passed {
                "Every gate was reached."
            } else {
                "A gate was MISSED."
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            generator::Sample,
            rows::{Id, ROWS, Ratio},
        },
        Report, quantile,
    };

    #[test]
    fn quantiles_lie_between_the_nearest_values() {
        let values = [4.0, 1.0, 3.0, 2.0];
        for (share, wanted) in [
            (0.0, 1.0),
            (0.25, 1.75),
            (0.5, 2.5),
            (0.75, 3.25),
            (1.0, 4.0),
        ] {
            assert!((quantile(&values, share) - wanted).abs() < 1e-9, "{share}");
        }
    }

    #[test]
    fn a_median_below_its_gate_fails_the_benchmark() {
        // The generator takes 50 ns, plain forwarding 1050, everything else 250.
        let cost = |id| match id {
            Id::Generator => 50,
            Id::Plain => 1050,
            _ => 250,
        };
        let sample = |id| Sample {
            cpu_ns: cost(id) * 100,
            sent: 100,
            arrived: 100,
            last: None,
        };
        let rounds = vec![ROWS.iter().map(|row| sample(row.id)).collect(); 3];
        let report = |gate| {
            let (gate, goal) = (Some(gate), None);
            Report::new(
                ROWS,
                &[Ratio {
                    of: Id::Redirect,
                    to: Id::Plain,
                    gate,
                    goal,
                }],
                &rounds,
            )
        };
        assert!((report(5.0).ratios[0].median - 5.0).abs() < 1e-9);
        assert!(report(5.0).passed());
        assert!(!report(5.01).passed());
    }

    #[test]
    fn every_ratio_compares_rows_that_are_measured() {
        for ratio in super::super::rows::RATIOS {
            for id in [ratio.of, ratio.to] {
                assert!(ROWS.iter().any(|row| row.id == id), "{id:?}");
            }
        }
    }
}
