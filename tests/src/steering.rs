//! Ways to steer the lab's router, so that one scenario can judge them all.

use anyhow::{Result, bail};

use crate::{
    lab::{Breakout, Lab},
    marker::Marker,
    steer::{Settings, Steer},
};

/// What steers.
#[derive(Clone, Debug)]
pub enum Steering {
    /// What one would write first: a TC program that sets the final mark, and nftables rules that
    /// save and restore it. The counter-example.
    Naive,
    /// The real program.
    Steer(Settings),
}

/// Mark and table of the naive ruleset. The values are steer's, so that both are alike in all but
/// the ruleset.
const MARK: u32 = 0x2100_0000;
const MASK: u32 = 0x3f00_0000;
const TABLE: u32 = 36501;
const NAIVE: &str = include_str!("rulesets/naive.nft");

impl Steering {
    /// Turns it on in the lab's router and returns when new flows are steered.
    pub fn enable<'lab>(&self, lab: &'lab Lab) -> Result<Enabled<'lab>> {
        match self {
            Self::Naive => {
                lab.expect_leaks();
                // The rules last: a mark alone does nothing.
                let marker = Marker::attach(&lab.router, "lan0", MARK, MASK)?;
                lab.router.nft(NAIVE)?;
                naive_routes(lab, &lab.breakouts()[0])?;
                for (family, suppress) in [("-4", "1"), ("-6", "3")] {
                    let rules = format!(
                        "rule add pref 600 fwmark {MARK}/{MASK} lookup main \
                         suppress_prefixlength {suppress}\n\
                         rule add pref 601 fwmark {MARK}/{MASK} lookup {TABLE}\n"
                    );
                    lab.router.feed("ip", &[family, "-batch", "-"], &rules)?;
                }
                Ok(Enabled {
                    lab,
                    what: What::Naive { _marker: marker },
                })
            }
            Self::Steer(settings) => {
                let steer = Steer::start(lab, settings)?;
                Ok(Enabled {
                    lab,
                    what: What::Steer(steer),
                })
            }
        }
    }
}

/// Something that steers. Dropping it takes it down.
#[derive(Debug)]
pub struct Enabled<'lab> {
    lab: &'lab Lab,
    what: What<'lab>,
}

#[derive(Debug)]
enum What<'lab> {
    Naive { _marker: Marker },
    Steer(Steer<'lab>),
}

impl<'lab> Enabled<'lab> {
    /// Kills the controller, if there is one, as a crash would.
    pub fn kill_controller(&mut self) -> Result<()> {
        match &mut self.what {
            What::Naive { .. } => Ok(()),
            What::Steer(steer) => steer.kill(),
        }
    }

    /// The routes of a link that came back: a controller brings them back by itself, and an
    /// operator's scripts do for the naive ruleset.
    pub fn restore_routes(&self, breakout: &Breakout) -> Result<()> {
        match self.what {
            What::Naive { .. } => naive_routes(self.lab, breakout),
            What::Steer(_) => Ok(()),
        }
    }

    /// The running steer. Fails for the naive ruleset.
    pub fn into_steer(self) -> Result<Steer<'lab>> {
        match self.what {
            What::Naive { .. } => bail!("the naive ruleset has no controller"),
            What::Steer(steer) => Ok(steer),
        }
    }
}

fn naive_routes(lab: &Lab, breakout: &Breakout) -> Result<()> {
    let Breakout {
        interface,
        gateway: (v4, v6),
        ..
    } = breakout;
    lab.router.ip(&format!(
        "route replace default via {v4} dev {interface} table {TABLE}\n\
         route replace default via {v6} dev {interface} table {TABLE}\n"
    ))
}
