//! Builds the image of a generation: claims of endpoint sets on prefixes become tables.
//!
//! Prefixes nest or are disjoint, never anything else, so one sweep with a stack finds every range
//! of addresses that the same claims cover. The rules of a range are those claims' rules in their
//! order, so that the first rule that matches is the answer.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    ops::Bound,
    vec::Vec,
};

use ipnet::IpNet;

use crate::{
    abi,
    chunk::{
        BOUNDARIES_PER_CHUNK, Boundary, CELLS, CHUNKS, CLASSES, Chunk, Chunks, DST4, DST6, DYNAMIC,
        ENTRIES, ENTRIES_PER_CHUNK, LEARNS, MAX_BOUNDARIES, MAX_ENTRIES, MAX_SEGMENTS, POINTER,
        RULES_PER_ENTRY, SEGMENTS, SEGMENTS_PER_CHUNK, SRC4, SRC6, Segment, SourceKind,
    },
    flow,
    rule::{ANY, Rule},
};

mod transition;

pub use self::transition::Newcomers;

/// The most claims on prefixes of one family.
pub const MAX_CLAIMS: usize = 16_384;

/// What one endpoint set, or the operator, wants for one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The destinations.
    pub prefix: IpNet,
    /// Which claim comes first where several match.
    pub order: Order,
    /// The protocols and ports, and what to do with them.
    pub rules: Vec<Rule>,
}

/// The order of claims on one address: lower comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    rank: u8,
    length: Reverse<u8>,
    id: u32,
}

impl Order {
    /// By `rank` (0 first: exclusions, then Optimize, Allow, Default), then the longest prefix,
    /// then the lowest `id`.
    pub fn new(rank: u8, prefix: &IpNet, id: u32) -> Self {
        Self {
            rank,
            length: Reverse(prefix.prefix_len()),
            id,
        }
    }
}

/// Whom a prefix of sources makes a client or leaves out; the most specific prefix wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The sources.
    pub prefix: IpNet,
    /// Client or left out.
    pub kind: SourceKind,
}

/// Why a plan does not fit into a generation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// More prefixes than the tables are made for.
    #[error("{found} claims on prefixes, {MAX_CLAIMS} fit")]
    Claims {
        /// How many there are.
        found: usize,
    },
    /// Too many rules meet on one range of addresses.
    #[error("{found} port rules meet at {address}, {RULES_PER_ENTRY} fit")]
    Rules {
        /// The first address of the range.
        address: std::net::IpAddr,
        /// How many there are.
        found: usize,
    },
    /// Too many different lists of rules.
    #[error("more than {MAX_ENTRIES} different lists of port rules")]
    Entries,
    /// Too many different IPv6 /16 networks hold longer prefixes.
    #[error("the IPv6 prefixes lie in more than {MAX_SEGMENTS} different /16 networks")]
    Segments,
    /// Too many IPv6 ranges in one /16.
    #[error("more than {MAX_BOUNDARIES} ranges in one IPv6 /16 network")]
    Boundaries,
    /// The tables are full.
    #[error("the prefixes need more than {CHUNKS} blocks of 512 bytes")]
    Chunks,
}

/// A generation as bytes, before it is a map; the lookups run on it as they do in the kernel.
#[derive(Clone)]
pub struct Image {
    chunks: Vec<Chunk>,
    entries: u32,
}

impl Chunks for Image {
    fn chunk(&self, index: u32) -> Option<&Chunk> {
        if index < CHUNKS {
            Some(self.chunks.get(index as usize).unwrap_or(&Chunk::EMPTY))
        } else {
            None
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("chunks", &self.chunks.len())
            .field("entries", &self.entries)
            .finish()
    }
}

impl Image {
    /// Builds the tables of destinations and sources.
    pub fn build(destinations: &[Claim], sources: &[Source]) -> Result<Self, ImageError> {
        Self::build_learning(destinations, sources, &[])
    }

    /// The same for a plan whose names teach addresses: `classes` are the rules of each class (by
    /// its index) that a learned address can belong to. With none, nothing is learned.
    ///
    /// An address that is a destination of the plan is never taken for a learned one: what must
    /// not be steered whatever an answer says (the router's own addresses, the LAN, what the
    /// operator excludes) has to be among the destinations, with a rule that passes.
    pub fn build_learning(
        destinations: &[Claim],
        sources: &[Source],
        classes: &[(u16, Vec<Rule>)],
    ) -> Result<Self, ImageError> {
        for found in [destinations.len(), sources.len()] {
            if found > MAX_CLAIMS {
                return Err(ImageError::Claims { found });
            }
        }
        let mut image = Self::empty();
        let mut known = HashMap::new();
        for (family, root) in [(Family::V4, DST4), (Family::V6, DST6)] {
            let prefixes: Vec<IpNet> = destinations.iter().map(|claim| claim.prefix).collect();
            let ranges = ranges(family, &prefixes, |address, covering| {
                let rules = first_rules(covering.iter().map(|&index| &destinations[index]));
                image.entry(&mut known, address, rules)
            })?;
            image.store(family, root, &ranges)?;
        }
        for (family, root) in [(Family::V4, SRC4), (Family::V6, SRC6)] {
            let prefixes: Vec<IpNet> = sources.iter().map(|source| source.prefix).collect();
            let ranges = ranges(family, &prefixes, |_, covering| {
                Ok(covering
                    .iter()
                    .map(|&index| &sources[index])
                    .max_by_key(|source| (source.prefix.prefix_len(), source.kind as u16))
                    .map_or(0, |source| source.kind as u16))
            })?;
            image.store(family, root, &ranges)?;
        }
        for (class, rules) in classes {
            let nowhere = std::net::Ipv4Addr::UNSPECIFIED.into();
            let entry = image.entry(&mut known, nowhere, rules.clone())?;
            image.set_class(*class, entry);
        }
        image.finish(!classes.is_empty());
        Ok(image)
    }

    /// The image of chunks that were read, those past the end all zero.
    pub fn from_chunks(chunks: Vec<Chunk>) -> Self {
        Self { chunks, entries: 1 }
    }

    fn empty() -> Self {
        Self {
            chunks: std::vec![Chunk::EMPTY; DYNAMIC as usize],
            entries: 1,
        }
    }

    fn set_class(&mut self, class: u16, entry: u16) {
        let class = u32::from(class) & (abi::CLASSES - 1);
        self.set(
            (CLASSES + class / CELLS as u32, class % CELLS as u32),
            entry,
        );
    }

    /// Writes the header.
    fn finish(&mut self, learns: bool) {
        let fingerprint = self.fingerprint();
        let header = self.chunks[0].header_mut();
        header.fingerprint = fingerprint;
        header.flags = if learns { LEARNS } else { 0 };
    }

    /// Writes the generation's number into its header.
    pub fn set_number(&mut self, number: u64) {
        self.chunks[0].header_mut().number = number;
    }

    /// The chunks that are not all zero, with their indexes: what has to be written.
    pub fn written(&self) -> impl Iterator<Item = (u32, &Chunk)> {
        (0..)
            .zip(&self.chunks)
            .filter(|(_, chunk)| **chunk != Chunk::EMPTY)
    }

    /// How many chunks of the 8,192 are in use, the fixed ones included.
    pub fn chunks_used(&self) -> usize {
        self.chunks.len()
    }

    /// How many different lists of rules there are.
    pub fn entries_used(&self) -> u32 {
        self.entries - 1
    }

    /// A checksum of everything but the header.
    fn fingerprint(&self) -> u64 {
        let words = self.chunks[1..].iter().flat_map(Chunk::boundaries);
        flow::finish(words.fold(0, |hash, word| {
            flow::mix(flow::mix(hash, word.high), word.low)
        }))
    }

    fn entry(
        &mut self,
        known: &mut HashMap<Vec<Rule>, u16>,
        address: std::net::IpAddr,
        rules: Vec<Rule>,
    ) -> Result<u16, ImageError> {
        if rules.is_empty() {
            return Ok(0);
        }
        if let Some(&entry) = known.get(&rules) {
            return Ok(entry);
        }
        if rules.len() > RULES_PER_ENTRY as usize {
            return Err(ImageError::Rules {
                address,
                found: rules.len(),
            });
        }
        if self.entries == MAX_ENTRIES {
            return Err(ImageError::Entries);
        }
        let entry = self.entries;
        self.entries += 1;
        let chunk = &mut self.chunks[(ENTRIES + entry / ENTRIES_PER_CHUNK) as usize];
        let first = (entry % ENTRIES_PER_CHUNK * RULES_PER_ENTRY) as usize;
        chunk.rules_mut()[first..first + rules.len()].copy_from_slice(&rules);
        known.insert(rules, entry as u16);
        Ok(entry as u16)
    }

    fn store(&mut self, family: Family, root: u32, ranges: &Ranges) -> Result<(), ImageError> {
        match family {
            Family::V4 => self.store_v4(root, ranges),
            Family::V6 => self.store_v6(root, ranges),
        }
    }

    fn store_v4(&mut self, root: u32, ranges: &Ranges) -> Result<(), ImageError> {
        for (first, last, value) in ranges.spans(Family::V4) {
            let (first, last) = (first as u32, last as u32);
            for top in first >> 16..=last >> 16 {
                let (from, to) = (first.max(top << 16), last.min(top << 16 | 0xffff));
                let place = (root + (top >> 8), top & 0xff);
                if to - from == 0xffff {
                    self.set(place, value);
                    continue;
                }
                let block = self.block_below(place)?;
                for middle in from >> 8..=to >> 8 {
                    let (from, to) = (from.max(middle << 8), to.min(middle << 8 | 0xff));
                    let place = (block, middle & 0xff);
                    if to - from == 0xff {
                        self.set(place, value);
                        continue;
                    }
                    let block = self.block_below(place)?;
                    for address in from..=to {
                        self.set((block, address & 0xff), value);
                    }
                }
            }
        }
        Ok(())
    }

    fn store_v6(&mut self, root: u32, ranges: &Ranges) -> Result<(), ImageError> {
        let mut segments: Vec<u32> = Vec::new();
        for (first, last, value) in ranges.spans(Family::V6) {
            for top in (first >> 112) as u32..=(last >> 112) as u32 {
                let (from, to) = (
                    u128::from(top) << 112,
                    u128::from(top) << 112 | u128::MAX >> 16,
                );
                if first <= from && to <= last {
                    self.set((root + (top >> 8), top & 0xff), value);
                } else if segments.last() != Some(&top) {
                    segments.push(top);
                }
            }
        }
        for top in segments {
            let segment = self.segment(top, ranges)?;
            self.set((root + (top >> 8), top & 0xff), POINTER | segment);
        }
        Ok(())
    }

    /// Stores the boundaries and values of one /16 and gives the number of its segment.
    fn segment(&mut self, top: u32, ranges: &Ranges) -> Result<u16, ImageError> {
        let from = u128::from(top) << 112;
        let to = from | u128::MAX >> 16;
        let inside = ranges.0.range((Bound::Excluded(from), Bound::Included(to)));
        let bounds: Vec<(u128, u16)> = std::iter::once((from, ranges.value(from)))
            .chain(inside.map(|(&first, &value)| (first, value)))
            .collect();
        if bounds.len() > MAX_BOUNDARIES as usize {
            return Err(ImageError::Boundaries);
        }

        let boundaries = self.allocate(bounds.len().div_ceil(BOUNDARIES_PER_CHUNK as usize))?;
        let values = self.allocate(bounds.len().div_ceil(CELLS))?;
        for (index, (first, value)) in (0_u32..).zip(&bounds) {
            let chunk = &mut self.chunks[(boundaries + index / BOUNDARIES_PER_CHUNK) as usize];
            chunk.boundaries_mut()[(index % BOUNDARIES_PER_CHUNK) as usize] = Boundary {
                high: (first >> 64) as u64,
                low: *first as u64,
            };
            self.set(
                (values + index / CELLS as u32, index % CELLS as u32),
                *value,
            );
        }

        let taken = |chunk: &Chunk, slot: usize| chunk.segments()[slot].count != 0;
        let number = (0..MAX_SEGMENTS).find(|number| {
            let chunk = &self.chunks[(SEGMENTS + number / SEGMENTS_PER_CHUNK) as usize];
            !taken(chunk, (number % SEGMENTS_PER_CHUNK) as usize)
        });
        let number = number.ok_or(ImageError::Segments)?;
        let chunk = &mut self.chunks[(SEGMENTS + number / SEGMENTS_PER_CHUNK) as usize];
        chunk.segments_mut()[(number % SEGMENTS_PER_CHUNK) as usize] = Segment {
            boundaries: boundaries as u16,
            values: values as u16,
            count: bounds.len() as u16,
            reserved: 0,
        };
        Ok(number as u16)
    }

    fn set(&mut self, (chunk, cell): (u32, u32), value: u16) {
        self.chunks[chunk as usize].cells_mut()[cell as usize] = value;
    }

    /// The block that a cell points to, made if the cell held a value.
    fn block_below(&mut self, (chunk, cell): (u32, u32)) -> Result<u32, ImageError> {
        let value = self.chunks[chunk as usize].cells()[cell as usize];
        if value & POINTER != 0 {
            return Ok(DYNAMIC + u32::from(value & !POINTER));
        }
        let block = self.allocate(1)?;
        self.chunks[block as usize].cells_mut().fill(value);
        self.set((chunk, cell), POINTER | (block - DYNAMIC) as u16);
        Ok(block)
    }

    fn allocate(&mut self, count: usize) -> Result<u32, ImageError> {
        let first = self.chunks.len();
        if first + count > CHUNKS as usize {
            return Err(ImageError::Chunks);
        }
        self.chunks.resize(first + count, Chunk::EMPTY);
        Ok(first as u32)
    }
}

/// The rules of some claims in their order, without those that an earlier one leaves nothing to.
fn first_rules<'a>(claims: impl Iterator<Item = &'a Claim>) -> Vec<Rule> {
    let mut claims: Vec<&Claim> = claims.collect();
    claims.sort_by_key(|claim| claim.order);
    let mut rules: Vec<Rule> = Vec::new();
    for rule in claims.iter().flat_map(|claim| &claim.rules) {
        let hidden = rules.iter().any(|earlier| {
            earlier.protocol == ANY
                || (earlier.protocol == rule.protocol
                    && earlier.first <= rule.first
                    && rule.last <= earlier.last)
        });
        if !hidden {
            rules.push(*rule);
        }
    }
    rules
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// The first and last address of a prefix of this family.
    fn span(self, prefix: &IpNet) -> Option<(u128, u128)> {
        match (self, prefix) {
            (Self::V4, IpNet::V4(net)) => Some((
                u32::from(net.network()).into(),
                u32::from(net.broadcast()).into(),
            )),
            (Self::V6, IpNet::V6(net)) => Some((net.network().into(), net.broadcast().into())),
            _ => None,
        }
    }

    fn last(self) -> u128 {
        match self {
            Self::V4 => u32::MAX.into(),
            Self::V6 => u128::MAX,
        }
    }

    fn address(self, address: u128) -> std::net::IpAddr {
        match self {
            Self::V4 => std::net::Ipv4Addr::from(address as u32).into(),
            Self::V6 => std::net::Ipv6Addr::from(address).into(),
        }
    }
}

/// Ranges of addresses by their first address, each up to the next one, with their values.
struct Ranges(BTreeMap<u128, u16>);

impl Ranges {
    fn value(&self, address: u128) -> u16 {
        self.0
            .range(..=address)
            .next_back()
            .map_or(0, |(_, &value)| value)
    }

    /// First address, last address and value of every range that has one.
    fn spans(&self, family: Family) -> impl Iterator<Item = (u128, u128, u16)> {
        let ends = self
            .0
            .keys()
            .skip(1)
            .map(|next| next - 1)
            .chain([family.last()]);
        let spans = self.0.iter().zip(ends);
        spans
            .filter(|((_, value), _)| **value != 0)
            .map(|((&first, &value), last)| (first, last, value))
    }
}

/// Cuts the address space where the set of covering prefixes changes, and asks `value` for each.
fn ranges(
    family: Family,
    prefixes: &[IpNet],
    mut value: impl FnMut(std::net::IpAddr, &[usize]) -> Result<u16, ImageError>,
) -> Result<Ranges, ImageError> {
    let mut spans: Vec<(u128, Reverse<u128>, usize)> = prefixes
        .iter()
        .enumerate()
        .filter_map(|(index, prefix)| {
            family
                .span(prefix)
                .map(|(first, last)| (first, Reverse(last), index))
        })
        .collect();
    spans.sort_unstable();

    let mut sweep = Sweep {
        open: Vec::new(),
        covering: BTreeMap::from([(0, Vec::new())]),
    };
    for (first, Reverse(last), index) in spans {
        sweep.close(|end| end < first, family.last());
        sweep.open.push((index, last));
        sweep.note(first);
    }
    sweep.close(|_| true, family.last());

    let mut ranges = BTreeMap::new();
    let mut previous = None;
    for (first, covering) in sweep.covering {
        let value = value(family.address(first), &covering)?;
        if previous != Some(value) {
            ranges.insert(first, value);
            previous = Some(value);
        }
    }
    Ok(Ranges(ranges))
}

/// A walk over the address space, from prefix to prefix.
struct Sweep {
    /// The prefixes around the current address, outermost first, with their last addresses.
    open: Vec<(usize, u128)>,
    /// Which prefixes cover the addresses from here on.
    covering: BTreeMap<u128, Vec<usize>>,
}

impl Sweep {
    fn note(&mut self, first: u128) {
        self.covering
            .insert(first, self.open.iter().map(|&(index, _)| index).collect());
    }

    /// Closes the prefixes whose last address is `over`.
    fn close(&mut self, over: impl Fn(u128) -> bool, last: u128) {
        while let Some(&(_, end)) = self.open.last()
            && over(end)
        {
            self.open.pop();
            if end != last {
                self.note(end + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, string::ToString};

    use proptest::prelude::*;

    use super::*;
    use crate::{lookup, rule};

    pub(super) fn value(image: &Image, roots: (u32, u32), address: IpAddr) -> u16 {
        match address {
            IpAddr::V4(address) => lookup::v4(image, roots.0, address.into()),
            IpAddr::V6(address) => {
                let bits = u128::from(address);
                lookup::v6(image, roots.1, (bits >> 64) as u64, bits as u64)
            }
        }
    }

    pub(super) fn rule_at(image: &Image, address: IpAddr, protocol: u8, port: u16) -> Option<Rule> {
        match value(image, (DST4, DST6), address) {
            0 => None,
            entry => lookup::rule(image, entry, protocol, port),
        }
    }

    /// What the image should say, straight from the claims.
    fn expected(claims: &[Claim], address: IpAddr, protocol: u8, port: u16) -> Option<Rule> {
        let mut claims: Vec<&Claim> = claims
            .iter()
            .filter(|claim| claim.prefix.contains(&address))
            .collect();
        claims.sort_by_key(|claim| claim.order);
        claims
            .iter()
            .flat_map(|claim| &claim.rules)
            .find(|r| r.matches(protocol, port))
            .copied()
    }

    /// Prefixes that crowd in a corner of the address space, so that they nest and touch.
    fn prefixes() -> impl Strategy<Value = IpNet> {
        let v4 = (0_u32..0x0004_0000, 8_u8..=32).prop_map(|(address, length)| {
            ipnet::Ipv4Net::new((0x0a00_0000 | address << 4).into(), length)
                .map(|net| IpNet::V4(net.trunc()))
        });
        let v6 =
            (0_u128..0x0004_0000, 0_u32..8, 8_u8..=128).prop_map(|(address, place, length)| {
                let bits = 0x2603 << 112 | address << (place * 14);
                ipnet::Ipv6Net::new(bits.into(), length).map(|net| IpNet::V6(net.trunc()))
            });
        prop_oneof![v4, v6].prop_filter_map("a valid prefix", Result::ok)
    }

    pub(super) fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let claim = (
            prefixes(),
            0_u8..4,
            1_u16..40,
            prop_oneof![Just(rule::TCP), Just(rule::UDP), Just(ANY)],
            0_u16..6,
            0_u16..3,
        )
            .prop_map(|(prefix, rank, id, protocol, first, more)| Claim {
                prefix,
                order: Order::new(rank, &prefix, id.into()),
                rules: std::vec![Rule::steer(id, protocol, first, first + more)],
            });
        prop::collection::vec(claim, 0..40)
    }

    /// An address next to an edge of a prefix, or anywhere.
    pub(super) fn near(claims: &[Claim], pick: usize, offset: i8, anywhere: u128) -> IpAddr {
        let Some(claim) = claims.get(pick % (claims.len() + 1)) else {
            return std::net::Ipv6Addr::from(anywhere).into();
        };
        let move_by = |bits: u128| bits.wrapping_add_signed(offset.into());
        match claim.prefix {
            IpNet::V4(net) if offset < 0 => {
                IpAddr::V4((move_by(u32::from(net.network()).into()) as u32).into())
            }
            IpNet::V4(net) => {
                IpAddr::V4((move_by(u32::from(net.broadcast()).into()) as u32).into())
            }
            IpNet::V6(net) if offset < 0 => IpAddr::V6(move_by(net.network().into()).into()),
            IpNet::V6(net) => IpAddr::V6(move_by(net.broadcast().into()).into()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn an_image_answers_as_the_claims_do(
            claims in claims(),
            probes in prop::collection::vec((any::<usize>(), -2_i8..3, any::<u128>(), 0_u16..8), 64),
        ) {
            let image = match Image::build(&claims, &[]) {
                Err(ImageError::Rules { .. }) => return Ok(()),
                other => other.unwrap(),
            };
            for (pick, offset, anywhere, port) in probes {
                let address = near(&claims, pick, offset, anywhere);
                for protocol in [rule::TCP, rule::UDP, 1] {
                    prop_assert_eq!(
                        rule_at(&image, address, protocol, port),
                        expected(&claims, address, protocol, port),
                        "{} protocol {} port {}", address, protocol, port
                    );
                }
            }
        }

        #[test]
        fn the_most_specific_source_decides(
            prefixes in prop::collection::vec((prefixes(), any::<bool>()), 0..30),
            probes in prop::collection::vec((any::<usize>(), -2_i8..3, any::<u128>()), 64),
        ) {
            let sources: Vec<Source> = prefixes.iter().map(|&(prefix, client)| Source {
                prefix,
                kind: if client { SourceKind::Client } else { SourceKind::LeftOut },
            }).collect();
            let image = Image::build(&[], &sources).unwrap();
            let as_claims: Vec<Claim> = prefixes.iter().map(|&(prefix, _)| Claim {
                prefix, order: Order::new(0, &prefix, 0), rules: Vec::new(),
            }).collect();
            for (pick, offset, anywhere) in probes {
                let address = near(&as_claims, pick, offset, anywhere);
                let expected = sources.iter().filter(|source| source.prefix.contains(&address))
                    .max_by_key(|source| (source.prefix.prefix_len(), source.kind as u16))
                    .map_or(0, |source| source.kind as u16);
                prop_assert_eq!(value(&image, (SRC4, SRC6), address), expected, "{}", address);
            }
        }
    }

    pub(super) fn claim(prefix: &str, rank: u8, id: u16, rules: &[Rule]) -> Claim {
        let prefix: IpNet = prefix.parse().unwrap();
        Claim {
            prefix,
            order: Order::new(rank, &prefix, id.into()),
            rules: rules.to_vec(),
        }
    }

    #[test]
    fn the_default_route_covers_every_address() {
        let everything = [Rule::steer(1, ANY, 0, u16::MAX)];
        let claims = [
            claim("0.0.0.0/0", 1, 1, &everything),
            claim("::/0", 1, 1, &everything),
        ];
        let image = Image::build(&claims, &[]).unwrap();
        for address in [
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            assert!(
                rule_at(&image, address.parse().unwrap(), 6, 1).is_some(),
                "{address}"
            );
        }
    }

    #[test]
    fn an_empty_plan_matches_nothing() {
        let image = Image::build(&[], &[]).unwrap();
        assert_eq!(rule_at(&image, "52.96.0.1".parse().unwrap(), 6, 443), None);
        assert_eq!(image.written().count(), 0, "nothing has to be written");
    }

    #[test]
    fn too_many_rules_at_one_address_are_refused_with_the_address() {
        let claims: Vec<Claim> = (0..33)
            .map(|id| {
                claim(
                    "52.96.0.0/14",
                    1,
                    id,
                    &[Rule::steer(id + 1, rule::TCP, id, id)],
                )
            })
            .collect();
        let error = Image::build(&claims, &[]).unwrap_err();
        assert_eq!(error.to_string(), "33 port rules meet at 52.96.0.0, 32 fit");
    }

    #[test]
    fn a_plan_that_needs_too_many_blocks_is_refused() {
        let claims: Vec<Claim> = (0..MAX_CLAIMS as u32)
            .map(|index| {
                let prefix = std::format!("{}/32", std::net::Ipv4Addr::from(index << 12));
                claim(&prefix, 1, 1, &[Rule::steer(1, rule::TCP, 1, 1)])
            })
            .collect();
        assert_eq!(Image::build(&claims, &[]).unwrap_err(), ImageError::Chunks);
    }

    #[test]
    fn four_thousand_prefixes_of_each_family_fit() {
        let mut claims = Vec::new();
        for index in 0..4096_u32 {
            let v4 = std::format!(
                "{}/24",
                std::net::Ipv4Addr::from(0x1400_0000 + (index << 8) * 17)
            );
            let v6 = std::format!(
                "{}/48",
                std::net::Ipv6Addr::from(0x2603 << 112 | u128::from(index) << 83)
            );
            for prefix in [v4, v6] {
                let prefix = prefix.parse::<IpNet>().unwrap().trunc().to_string();
                claims.push(claim(&prefix, 1, 1, &[Rule::steer(1, rule::TCP, 443, 443)]));
            }
        }
        let image = Image::build(&claims, &[]).unwrap();
        assert!(image.chunks_used() <= CHUNKS as usize);
    }
}
