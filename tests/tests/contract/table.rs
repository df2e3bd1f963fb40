//! What becomes of running flows, as `docs/restarts.md` says it to the operator.

use std::fmt::Write as _;

use steer_tests::steer::Mode;

/// What happens to the box or to steer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    FirstStart,
    Restart,
    Reload,
    NewList,
    ListWithout,
    ListWith,
    Down,
    DownReset,
    Back,
    Detach,
}

impl Change {
    const fn name(self) -> &'static str {
        match self {
            Self::FirstStart => "first start",
            Self::Restart => "stop or kill, and start",
            Self::Reload => "reload of another configuration",
            Self::NewList => "a list that still has their destinations",
            Self::ListWithout => "a list without their destinations",
            Self::ListWith => "a list that brings their destinations",
            Self::Down => "a breakout goes down",
            Self::DownReset => "the same with `on_path_loss = \"reset\"`",
            Self::Back => "it comes back",
            Self::Detach => "`steer detach`, until the drain ends",
        }
    }
}

/// Where flows were when it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Born {
    Backbone,
    Breakout,
    ThatBreakout,
    OtherBreakout,
    BackboneMeanwhile,
}

impl Born {
    const fn name(self) -> &'static str {
        match self {
            Self::Backbone => "the backbone",
            Self::Breakout => "a breakout",
            Self::ThatBreakout => "that breakout",
            Self::OtherBreakout => "the other breakout",
            Self::BackboneMeanwhile => "the backbone, since every breakout was down",
        }
    }
}

/// What becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Every packet on the way they have, nothing broken, nothing missing.
    Stay,
    /// No packet on another way; silent until their way is back.
    Wait,
    /// By the kernel's own routing from now on.
    Backbone,
    /// TCP hears of it by a reset; UDP begins anew.
    Reset,
    /// What the kernel's own routing kept alive comes back with its breakout.
    Return,
    /// This mode does not have it.
    None,
}

impl Fate {
    const fn name(self) -> &'static str {
        match self {
            Self::Stay => "stay",
            Self::Wait => "wait for it",
            Self::Backbone => "take the backbone",
            Self::Reset => "TCP is reset, UDP takes the next way",
            Self::Return => "return to it",
            Self::None => "needs mark mode",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub change: Change,
    pub born: Born,
    mark: Fate,
    redirect: Fate,
}

impl Row {
    pub const fn fate(self, mode: Mode) -> Fate {
        match mode {
            Mode::Mark => self.mark,
            Mode::Redirect => self.redirect,
        }
    }
}

const fn row(change: Change, born: Born, mark: Fate, redirect: Fate) -> Row {
    Row {
        change,
        born,
        mark,
        redirect,
    }
}

/// Each holds for IPv4 and IPv6, for long TCP transfers and for UDP flows like those of QUIC.
pub const CONTRACT: [Row; 19] = {
    use Born::{Backbone, BackboneMeanwhile, Breakout, OtherBreakout, ThatBreakout};
    use Change::{
        Back, Detach, Down, DownReset, FirstStart, ListWith, ListWithout, NewList, Reload, Restart,
    };
    use Fate::{Reset, Return, Stay, Wait};
    [
        row(FirstStart, Backbone, Stay, Stay),
        row(Restart, Breakout, Stay, Stay),
        row(Restart, Backbone, Stay, Stay),
        row(Reload, Breakout, Stay, Stay),
        row(Reload, Backbone, Stay, Stay),
        row(NewList, Breakout, Stay, Stay),
        row(NewList, Backbone, Stay, Stay),
        row(ListWithout, Breakout, Stay, Stay),
        row(ListWith, Backbone, Stay, Stay),
        row(Down, ThatBreakout, Wait, Fate::Backbone),
        row(Down, OtherBreakout, Stay, Stay),
        row(Down, Backbone, Stay, Stay),
        row(DownReset, ThatBreakout, Reset, Fate::None),
        row(DownReset, OtherBreakout, Stay, Fate::None),
        row(Back, ThatBreakout, Stay, Return),
        row(Back, OtherBreakout, Stay, Stay),
        row(Back, BackboneMeanwhile, Stay, Stay),
        row(Detach, Breakout, Stay, Stay),
        row(Detach, Backbone, Stay, Stay),
    ]
};

/// The table of the document.
pub fn document() -> String {
    let mut text =
        String::from("| change | flows on | mark mode | redirect mode |\n|---|---|---|---|\n");
    for row in &CONTRACT {
        let (change, born) = (row.change.name(), row.born.name());
        let (mark, redirect) = (row.mark.name(), row.redirect.name());
        writeln!(text, "| {change} | {born} | {mark} | {redirect} |").unwrap();
    }
    text
}
