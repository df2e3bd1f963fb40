//! From one generation to the next without moving a flow, for redirect mode.
//!
//! Its flow table is asked only about packets of a class (a look for every packet would cost all the
//! others dearly). Without more, a flow would move when the plan loses its destination, and one that
//! began on the kernel's way would be taken for new when the plan gets it. So between two plans
//! comes a third, that says of each destination and client whether it is
//! [entering or leaving](crate::flow::Standing).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    vec::Vec,
};

use super::{Family, Image, ImageError, Ranges};
use crate::{
    abi,
    chunk::{
        CELLS, Chunks, DST4, DST6, DYNAMIC, POINTER, RULES_PER_ENTRY, SEGMENTS, SEGMENTS_PER_CHUNK,
        SRC4, SRC6, SourceKind,
    },
    flow::Standing,
    lookup,
    rule::{ANY, Action, Rule},
};

/// What a transition does with what is new in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newcomers {
    /// Its flows are entering: those that began before are only watched.
    Watch,
    /// They were watched for long enough.
    Admit,
}

impl Image {
    /// This plan, with what it has to keep of the one `before`, which may be such a transition itself;
    /// `None` where it need not keep anything.
    ///
    /// An address of the router itself is left at once, whatever flows there were.
    ///
    /// Fails where the two plans do not fit into one generation.
    pub fn after(
        &self,
        before: &impl Chunks,
        newcomers: Newcomers,
    ) -> Result<Option<Self>, ImageError> {
        let mut image = Self::empty();
        let mut known = HashMap::new();
        let mut differs = false;
        for (family, root) in [(Family::V4, DST4), (Family::V6, DST6)] {
            let ranges = merged(family, root, before, self, |address, old, new| {
                let new = rules(self, new);
                let both = combined(&rules(before, old), &new, newcomers);
                differs |= both != new;
                image.entry(&mut known, address, both)
            })?;
            image.store(family, root, &ranges)?;
        }
        for (family, root) in [(Family::V4, SRC4), (Family::V6, SRC6)] {
            let ranges = merged(family, root, before, self, |_, old, new| {
                let both = source(old, new, newcomers);
                differs |= both != new;
                Ok(both)
            })?;
            image.store(family, root, &ranges)?;
        }
        let nowhere = std::net::Ipv4Addr::UNSPECIFIED.into();
        for class in 0..abi::CLASSES as u16 {
            let [old, new] = [
                rules(before, lookup::class(before, class)),
                rules(self, lookup::class(self, class)),
            ];
            let both = combined(&old, &new, newcomers);
            differs |= both != new;
            let entry = image.entry(&mut known, nowhere, both)?;
            image.set_class(class, entry);
        }
        image.finish(lookup::learns(before) || lookup::learns(self));
        Ok(differs.then_some(image))
    }
}

/// The rules of an entry.
fn rules(chunks: &impl Chunks, entry: u16) -> Vec<Rule> {
    if entry == 0 {
        return Vec::new();
    }
    let rule = |index| lookup::rule_at(chunks, entry, index);
    (0..RULES_PER_ENTRY).map_while(rule).collect()
}

/// What the rules before and those of now come to.
fn combined(old: &[Rule], new: &[Rule], newcomers: Newcomers) -> Vec<Rule> {
    let passes_all = |action| new.first().is_some_and(|rule| rule.action() == action);
    if passes_all(Action::RouterLocal) {
        return new.to_vec();
    }
    let mut both: Vec<Rule> = new
        .iter()
        .map(|rule| entering(*rule, old, newcomers))
        .collect();
    let leaving = old
        .iter()
        .filter(|rule| rule.action() == Action::Steer && !covers(new, **rule, |_| true))
        .map(|rule| rule.with(Standing::LEAVING));
    // An exclusion speaks of everything, so what still leaves comes before it. Where both do not fit,
    // the flows of what is dropped move.
    let room = RULES_PER_ENTRY as usize - both.len();
    let place = if passes_all(Action::Exclude) {
        0
    } else {
        both.len()
    };
    both.splice(place..place, leaving.take(room));
    both
}

fn entering(rule: Rule, old: &[Rule], newcomers: Newcomers) -> Rule {
    let known = |standing| standing != Standing::ENTERING;
    if rule.action() == Action::Steer && newcomers == Newcomers::Watch && !covers(old, rule, known)
    {
        rule.with(Standing::ENTERING)
    } else {
        rule
    }
}

/// Whether one of the rules that steer, with such a standing, speaks of all that `rule` speaks of.
fn covers(rules: &[Rule], rule: Rule, standing: impl Fn(Standing) -> bool) -> bool {
    rules.iter().any(|it| {
        it.action() == Action::Steer
            && standing(it.standing())
            && (it.protocol == ANY || it.protocol == rule.protocol)
            && it.first <= rule.first
            && rule.last <= it.last
    })
}

/// What a source is between two plans.
fn source(old: u16, new: u16, newcomers: Newcomers) -> u16 {
    match (SourceKind::is_client(old), SourceKind::is_client(new)) {
        (true, true) if Standing::of(old) != Standing::ENTERING => new,
        (_, true) if newcomers == Newcomers::Watch => Standing::ENTERING.on(new as u8).into(),
        (true, false) => SourceKind::Leaving as u16,
        _ => new,
    }
}

/// The ranges of a table in which neither generation changes its value, with what `value` makes of
/// both.
fn merged(
    family: Family,
    root: u32,
    before: &impl Chunks,
    now: &impl Chunks,
    mut value: impl FnMut(IpAddr, u16, u16) -> Result<u16, ImageError>,
) -> Result<Ranges, ImageError> {
    let mut edges = BTreeSet::new();
    family.edges(before, root, &mut edges);
    family.edges(now, root, &mut edges);
    let mut ranges = BTreeMap::new();
    let mut previous = None;
    for first in edges {
        let [old, new] = [
            family.look(before, root, first),
            family.look(now, root, first),
        ];
        let value = value(family.address(first), old, new)?;
        if previous != Some(value) {
            ranges.insert(first, value);
            previous = Some(value);
        }
    }
    Ok(Ranges(ranges))
}

impl Family {
    fn look(self, chunks: &impl Chunks, root: u32, address: u128) -> u16 {
        match self {
            Self::V4 => lookup::v4(chunks, root, address as u32),
            Self::V6 => lookup::v6(chunks, root, (address >> 64) as u64, address as u64),
        }
    }

    /// The addresses where a table's value can be another than that of the address before.
    fn edges(self, chunks: &impl Chunks, root: u32, edges: &mut BTreeSet<u128>) {
        let mut last = None;
        for top in 0..=u32::from(u16::MAX) {
            let cell = cell(chunks, root + (top >> 8), top);
            if cell & POINTER == 0 {
                if last != Some(cell) {
                    edges.insert(self.first_of(top));
                }
                last = Some(cell);
                continue;
            }
            edges.insert(self.first_of(top));
            last = None;
            match self {
                Self::V4 => edges_below(chunks, top << 16, 8, cell, edges),
                Self::V6 => edges.extend(boundaries(chunks, cell & !POINTER)),
            }
        }
    }

    /// The first address whose upper 16 bits these are.
    fn first_of(self, top: u32) -> u128 {
        match self {
            Self::V4 => u128::from(top << 16),
            Self::V6 => u128::from(top) << 112,
        }
    }
}

/// The first address of each cell of a block of IPv4, and of the blocks below it.
fn edges_below(
    chunks: &impl Chunks,
    base: u32,
    shift: u32,
    pointer: u16,
    edges: &mut BTreeSet<u128>,
) {
    for index in 0..CELLS as u32 {
        let first = base | index << shift;
        edges.insert(first.into());
        let cell = cell(chunks, DYNAMIC + u32::from(pointer & !POINTER), index);
        if cell & POINTER != 0 && shift != 0 {
            edges_below(chunks, first, 0, cell, edges);
        }
    }
}

/// The first addresses of the ranges of a segment of IPv6.
fn boundaries(chunks: &impl Chunks, segment: u16) -> Vec<u128> {
    let index = u32::from(segment);
    let Some(chunk) = chunks.chunk(SEGMENTS + index / SEGMENTS_PER_CHUNK) else {
        return Vec::new();
    };
    let segment = chunk.segments()[(index % SEGMENTS_PER_CHUNK) as usize];
    let boundary = |place: u32| {
        let chunk = chunks.chunk(u32::from(segment.boundaries) + (place >> 5))?;
        let boundary = chunk.boundaries()[(place & 31) as usize];
        Some(u128::from(boundary.high) << 64 | u128::from(boundary.low))
    };
    (0..segment.count.into()).map_while(boundary).collect()
}

fn cell(chunks: &impl Chunks, chunk: u32, index: u32) -> u16 {
    let cells = chunks.chunk(chunk).map(super::Chunk::cells);
    cells.map_or(0, |cells| cells[(index & 255) as usize])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            Claim, Source,
            tests::{claim, claims, near, rule_at, value},
        },
        *,
    };
    use crate::rule;

    const WEB: Rule = Rule::steer(1, rule::TCP, 443, 443);
    const MEDIA: Rule = Rule::steer(2, rule::UDP, 3478, 3481);

    fn image(claims: &[Claim]) -> Image {
        Image::build(claims, &[]).unwrap()
    }

    fn found(image: &Image, address: &str, rule: Rule) -> Option<(Action, Standing)> {
        let found = rule_at(image, address.parse().unwrap(), rule.protocol, rule.first);
        found.map(|rule| (rule.action(), rule.standing()))
    }

    const SETTLED: Option<(Action, Standing)> = Some((Action::Steer, Standing::SETTLED));
    const ENTERING: Option<(Action, Standing)> = Some((Action::Steer, Standing::ENTERING));
    const LEAVING: Option<(Action, Standing)> = Some((Action::Steer, Standing::LEAVING));

    #[test]
    fn what_comes_enters_and_what_goes_leaves() {
        let before = image(&[claim("52.96.0.0/14", 1, 1, &[WEB, MEDIA])]);
        let now = image(&[
            claim("52.96.0.0/15", 1, 1, &[WEB]),
            claim("2603:1000::/24", 1, 1, &[WEB]),
        ]);
        let between = now.after(&before, Newcomers::Watch).unwrap().unwrap();
        for (address, rule, expected) in [
            ("52.96.0.1", WEB, SETTLED),
            ("52.96.0.1", MEDIA, LEAVING),
            ("52.98.0.1", WEB, LEAVING),
            ("2603:1000::1", WEB, ENTERING),
            ("52.100.0.1", WEB, None),
        ] {
            assert_eq!(found(&between, address, rule), expected, "{address}");
        }
        let later = now.after(&between, Newcomers::Admit).unwrap().unwrap();
        assert_eq!(found(&later, "2603:1000::1", WEB), SETTLED);
        assert_eq!(found(&later, "52.98.0.1", WEB), LEAVING);
    }

    #[test]
    fn what_comes_back_before_its_flows_are_gone_is_settled() {
        let with = image(&[claim("52.96.0.0/14", 1, 1, &[WEB])]);
        let without = image(&[]);
        let between = without.after(&with, Newcomers::Watch).unwrap().unwrap();
        let back = with.after(&between, Newcomers::Watch).unwrap();
        assert!(back.is_none(), "{back:?}");
    }

    #[test]
    fn flows_to_what_the_operator_excludes_go_on_and_those_to_the_router_do_not() {
        let before = image(&[claim("52.96.0.0/14", 1, 1, &[WEB])]);
        for (action_of, expected) in [
            (Action::Exclude, LEAVING),
            (
                Action::RouterLocal,
                Some((Action::RouterLocal, Standing::SETTLED)),
            ),
        ] {
            let now = image(&[
                claim("52.96.0.0/14", 1, 1, &[WEB]),
                claim("52.96.7.0/24", 0, 0, &[Rule::pass(action_of)]),
            ]);
            let between = now.after(&before, Newcomers::Watch).unwrap();
            let between = between.unwrap_or(now);
            assert_eq!(found(&between, "52.96.7.1", WEB), expected);
            assert_eq!(found(&between, "52.96.8.1", WEB), SETTLED);
        }
    }

    #[test]
    fn clients_enter_and_leave_as_destinations_do() {
        let sources = |text: &str, kind| {
            let prefix = text.parse().unwrap();
            Image::build(&[], &[Source { prefix, kind }]).unwrap()
        };
        let before = sources("10.1.0.0/16", SourceKind::Client);
        let now = sources("10.0.0.0/15", SourceKind::Client);
        let kind =
            |image: &Image, address: &str| value(image, (SRC4, SRC6), address.parse().unwrap());
        let between = now.after(&before, Newcomers::Watch).unwrap().unwrap();
        assert_eq!(kind(&between, "10.1.0.1"), SourceKind::Client as u16);
        assert_eq!(kind(&between, "10.0.0.1"), SourceKind::Entering as u16);
        let left_out = sources("10.0.0.0/15", SourceKind::LeftOut);
        let between = left_out.after(&between, Newcomers::Watch).unwrap().unwrap();
        assert_eq!(kind(&between, "10.0.0.1"), SourceKind::Leaving as u16);
        assert_eq!(kind(&between, "10.2.0.1"), 0);
    }

    #[test]
    fn what_becomes_of_a_client_s_queries_moves_none_of_its_flows() {
        const ASKS: u16 = SourceKind::Client as u16;
        const LEFT: u16 = SourceKind::QueriesLeft as u16;
        const NOBODY: u16 = 0;
        let entering = |kind: u16| Standing::ENTERING.on(kind as u8).into();
        for (old, new, between) in [
            (ASKS, LEFT, LEFT),
            (LEFT, ASKS, ASKS),
            (entering(ASKS), LEFT, entering(LEFT)),
            (NOBODY, LEFT, entering(LEFT)),
            (LEFT, NOBODY, SourceKind::Leaving as u16),
        ] {
            assert_eq!(source(old, new, Newcomers::Watch), between, "{old} {new}");
        }
        assert_eq!(source(NOBODY, LEFT, Newcomers::Admit), LEFT);
    }

    /// The standing that a list of changes gives a flow, said of the two plans alone.
    fn expected(old: Option<Rule>, new: Option<Rule>) -> Option<Standing> {
        match (old, new) {
            (_, Some(new)) if new.action() != Action::Steer => None,
            (Some(_), Some(_)) => Some(Standing::SETTLED),
            (None, Some(_)) => Some(Standing::ENTERING),
            (Some(_), None) => Some(Standing::LEAVING),
            (None, None) => None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn a_new_flow_goes_where_the_new_plan_says_and_no_old_one_is_forgotten(
            old in claims(), new in claims(),
            probes in prop::collection::vec((any::<usize>(), -2_i8..3, any::<u128>(), 0_u16..8), 64),
        ) {
            let (Ok(before), Ok(now)) = (Image::build(&old, &[]), Image::build(&new, &[])) else {
                return Ok(());
            };
            let Ok(between) = now.after(&before, Newcomers::Watch) else { return Ok(()) };
            let between = between.unwrap_or_else(|| now.clone());
            let both = [old, new].concat();
            for (pick, offset, anywhere, port) in probes {
                let address = near(&both, pick, offset, anywhere);
                for protocol in [rule::TCP, rule::UDP] {
                    let [was, is, now] = [&before, &now, &between]
                        .map(|image| rule_at(image, address, protocol, port));
                    let standing = now.map(|rule| rule.standing());
                    if let Some(is) = is {
                        // A range of ports that only partly was there enters as a whole: what the table
                        // knows goes on in any case.
                        prop_assert_eq!(now.map(|rule| rule.class), Some(is.class));
                        prop_assert!(was.is_some() || standing == Some(Standing::ENTERING));
                    } else {
                        prop_assert_eq!(standing, expected(was, is), "{} {}", address, port);
                    }
                }
            }
        }
    }
}
