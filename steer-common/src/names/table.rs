//! Builds the table of names: patterns become keys, and every key learns what shorter ones say.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt,
    string::{String, ToString as _},
    vec::Vec,
};

use super::{
    EXCLUDED, GLOBS, Glob, HEAD_OCTETS, HEAD_WORDS, Head, KEY_OCTETS, Key, LEARN, MATCHED,
    MAX_NAMES, NameAction, NameRule, REWRITE,
};
use crate::flow;

/// Ends the key of a whole name: no octet of a lower-case host name.
const WHOLE: u8 = 0xff;
/// A boundary this long could be taken for the character `-` or a digit.
const FIRST_AMBIGUOUS: usize = b'-' as usize;

/// A name with at most one `*`: whole names, `*.suffix`, `*end.of.name`, `begin*end`.
///
/// `*` stands for any characters, dots included; beside dots on both sides (`a.*.b`, `*.b`) for at
/// least one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern {
    text: String,
    /// As far as it is significant.
    key: Vec<u8>,
    head: Option<Beginning>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Beginning {
    octets: Vec<u8>,
    /// The length octet that is not known, because its label goes on behind the text.
    open: Option<usize>,
    shortest: usize,
}

/// Why a pattern cannot be looked up in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a name.
    #[error(
        "{0:?} is no host name: letters, digits, '-' and '_' in labels of 1 to 63, one '*' at most"
    )]
    NotAName(String),
    /// The end of the name is too long for a key.
    #[error(
        "{0:?}: more than 62 characters behind the '*', or in the whole name, cannot be looked up"
    )]
    TooLong(String),
    /// The beginning is too long for a head.
    #[error("{0:?}: more than 31 characters before the '*' cannot be compared")]
    LongHead(String),
    /// A label behind a `*` that would be ambiguous.
    #[error(
        "{0:?}: a label of more than 44 characters behind a '*' cannot be told from other names"
    )]
    LongLabel(String),
    /// Nothing or a single label behind the `*`.
    #[error("{0:?} would match a whole top-level domain")]
    TooWide(String),
}

impl Pattern {
    /// What the operator or the feed wrote, in lower case.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern matches a name (without the root's dot; case does not matter).
    pub fn matches(&self, name: &str) -> bool {
        Wire::of(name).is_some_and(|wire| self.matches_wire(&wire))
    }

    fn matches_wire(&self, wire: &Wire) -> bool {
        wire.key.starts_with(&self.key)
            && self.head.as_ref().is_none_or(|head| {
                let same = |(place, octet): (usize, &u8)| {
                    head.open == Some(place) || wire.octets.get(place) == Some(octet)
                };
                wire.octets.len() >= head.shortest && head.octets.iter().enumerate().all(same)
            })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let Some((before, behind)) = text.split_once('*') else {
            let wire = Wire::of(&text).ok_or_else(|| PatternError::NotAName(text.clone()))?;
            if wire.octets.len() > KEY_OCTETS - 1 {
                return Err(PatternError::TooLong(text));
            }
            return Ok(Self {
                text,
                key: wire.key,
                head: None,
            });
        };
        let (key, tail) = tail(&text, behind)?;
        let head = match before {
            "" => None,
            _ => Some(beginning(&text, before, behind, tail)?),
        };
        Ok(Self { text, key, head })
    }
}

/// The key of what stands behind the `*`, and its octets in a message.
fn tail(text: &str, behind: &str) -> Result<(Vec<u8>, usize), PatternError> {
    let whole_labels = behind.strip_prefix('.');
    let name = whole_labels.unwrap_or(behind);
    let wire = Wire::of(name).ok_or_else(|| PatternError::NotAName(text.into()))?;
    // One label, or the end of one and nothing else.
    if !name.contains('.') {
        return Err(PatternError::TooWide(text.into()));
    }
    if name.split('.').any(|label| label.len() >= FIRST_AMBIGUOUS) {
        return Err(PatternError::LongLabel(text.into()));
    }
    if wire.octets.len() > KEY_OCTETS - 1 {
        return Err(PatternError::TooLong(text.into()));
    }
    let mut key = wire.key;
    key.pop();
    if whole_labels.is_some() {
        key.push(wire.octets[0]);
    }
    let octets = wire.octets.len() - usize::from(whole_labels.is_none());
    Ok((key, octets))
}

fn beginning(
    text: &str,
    before: &str,
    behind: &str,
    tail: usize,
) -> Result<Beginning, PatternError> {
    let whole_labels = before.strip_suffix('.');
    let wire = Wire::of(whole_labels.unwrap_or(before))
        .ok_or_else(|| PatternError::NotAName(text.into()))?;
    if wire.octets.len() > HEAD_OCTETS {
        return Err(PatternError::LongHead(text.into()));
    }
    let open = whole_labels.is_none().then_some(wire.last_label);
    // Between two dots there is a label: its length octet and a character.
    let between = match (whole_labels, behind.starts_with('.')) {
        (Some(_), true) => 2,
        // The label that the end belongs to has a length octet of its own.
        (Some(_), false) => 1,
        (None, _) => 0,
    };
    Ok(Beginning {
        shortest: wire.octets.len() + between + tail,
        octets: wire.octets,
        open,
    })
}

/// A name as it stands in a message, without the root.
struct Wire {
    octets: Vec<u8>,
    key: Vec<u8>,
    /// Where the last label's length octet is.
    last_label: usize,
}

impl Wire {
    fn of(name: &str) -> Option<Self> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let mut octets = Vec::new();
        let mut last_label = 0;
        for label in name.split('.') {
            let ordinary = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
            if label.is_empty() || label.len() > 63 || !label.bytes().all(ordinary) {
                return None;
            }
            last_label = octets.len();
            octets.push(label.len() as u8);
            octets.extend(label.bytes().map(|c| c.to_ascii_lowercase()));
        }
        if octets.len() > 254 {
            return None;
        }
        let mut key: Vec<u8> = octets[1..].iter().rev().copied().collect();
        key.push(WHOLE);
        Some(Self {
            octets,
            key,
            last_label,
        })
    }

    fn head(&self) -> Head {
        words(&self.octets)
    }
}

/// A whole name, as the kernel's programs know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeName {
    /// Its key: of a longer name the last octets.
    pub key: Key,
    /// The number that its budget goes by.
    pub hash: u64,
}

impl WholeName {
    /// Of a name of ordinary labels; none of others.
    pub fn of(name: &str) -> Option<Self> {
        let wire = Wire::of(name)?;
        let mut key = [0; KEY_OCTETS];
        for (to, from) in key.iter_mut().zip(&wire.key) {
            *to = *from;
        }
        let words: [u64; KEY_OCTETS / 8] = bytemuck::cast(key);
        let hash = super::hash(wire.octets.len() as u32, |place| words[place]);
        Some(Self {
            key,
            hash: flow::finish(hash),
        })
    }
}

fn words(octets: &[u8]) -> Head {
    let mut words = [0; HEAD_WORDS];
    for (place, octet) in octets.iter().take(HEAD_OCTETS).enumerate() {
        words[place / 8] |= u64::from(*octet) << (place % 8 * 8);
    }
    words
}

/// The name that a whole key is made from; of a longer one what the key holds, after an ellipsis.
///
/// The octets between the labels are their lengths, which are read from the end of the name on.
pub fn readable(key: &Key) -> String {
    let whole = key.iter().position(|&octet| octet == WHOLE);
    let octets: Vec<u8> = key[..whole.unwrap_or(KEY_OCTETS)]
        .iter()
        .rev()
        .copied()
        .collect();
    let text: String = octets
        .iter()
        .map(|&octet| match octet {
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' => char::from(octet),
            0..=63 => '.',
            _ => '?',
        })
        .collect();
    if whole.is_some() {
        text
    } else {
        std::format!("…{text}")
    }
}

/// What a claim wants for the names of its pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aim {
    /// They are left alone, whatever a more specific pattern says.
    Exclude,
    /// They belong to a class.
    Steer {
        /// An index of the registry.
        class: u16,
        /// Queries go to the resolver of the class's path.
        rewrite: bool,
        /// The addresses of the answers are steered.
        learn: bool,
    },
}

/// What one endpoint set, or the operator, wants for one pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameClaim {
    /// The names.
    pub pattern: Pattern,
    /// What for.
    pub aim: Aim,
    /// Optimize 1, Allow 2, Default 3: lower comes first where patterns are equally specific.
    pub rank: u8,
    /// Lower comes first at last.
    pub id: u32,
}

impl NameClaim {
    /// The order of claims on one name: exclusions, then the longer end (a whole name is the
    /// longest), then the longer beginning, then rank and id.
    fn order(&self) -> impl Ord + use<> {
        let head = self.pattern.head.as_ref();
        (
            self.aim != Aim::Exclude,
            Reverse(self.pattern.key.len()),
            Reverse(head.map_or(0, |head| head.octets.len())),
            self.rank,
            self.id,
        )
    }

    fn action(&self, place: usize) -> NameAction {
        let (class, flags) = match self.aim {
            Aim::Exclude => (0, EXCLUDED),
            Aim::Steer {
                class,
                rewrite,
                learn,
            } => (
                class,
                if rewrite { REWRITE } else { 0 } | if learn { LEARN } else { 0 },
            ),
        };
        NameAction {
            class,
            flags: flags | MATCHED,
            claim: place as u32,
        }
    }
}

/// Why a table cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// More names than the table is made for.
    #[error("{found} different names, {MAX_NAMES} fit")]
    Names {
        /// How many there are.
        found: usize,
    },
    /// Too many patterns with a beginning and the same end.
    #[error("more than {GLOBS} patterns with a '*' in the middle meet at {pattern}")]
    Globs {
        /// One of them.
        pattern: String,
    },
}

/// The names of a plan as the kernel's trie holds them: keys with their rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameTable {
    rules: BTreeMap<Vec<u8>, NameRule>,
    flags: u16,
}

impl NameTable {
    /// Builds the table; the place of a claim in `claims` is its [`NameAction::claim`].
    pub fn build(claims: &[NameClaim]) -> Result<Self, TableError> {
        let mut by_key: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
        for (place, claim) in claims.iter().enumerate() {
            by_key.entry(&claim.pattern.key).or_default().push(place);
        }
        if by_key.len() > MAX_NAMES as usize {
            return Err(TableError::Names {
                found: by_key.len(),
            });
        }
        let mut table = Self::default();
        for key in by_key.keys() {
            let mut candidates: Vec<usize> = (1..=key.len())
                .filter_map(|length| by_key.get(&key[..length]))
                .flatten()
                .copied()
                .collect();
            candidates.sort_by_key(|&place| claims[place].order());
            let rule = rule(claims, &candidates)?;
            table.flags |= rule.plain.flags;
            table.flags |= rule.globs.iter().fold(0, |all, it| all | it.action.flags);
            table.rules.insert(key.to_vec(), rule);
        }
        Ok(table)
    }

    /// The claim that a name (case does not matter) belongs to, by the kernel's own way.
    pub fn find(&self, name: &str) -> Option<NameAction> {
        let wire = Wire::of(name)?;
        let longest = wire.key.len().min(KEY_OCTETS);
        let rule = (1..=longest)
            .rev()
            .find_map(|length| self.rules.get(&wire.key[..length]))?;
        let action = rule.decide(&wire.head(), wire.octets.len() as u32);
        (action.flags != 0).then_some(action)
    }

    /// The keys with the bits that count, and their rules.
    pub fn entries(&self) -> impl Iterator<Item = (u32, Key, &NameRule)> {
        self.rules.iter().map(|(octets, rule)| {
            let mut key = [0; KEY_OCTETS];
            key[..octets.len()].copy_from_slice(octets);
            (octets.len() as u32 * 8, key, rule)
        })
    }

    /// Whether any answer teaches addresses.
    pub fn learns(&self) -> bool {
        self.flags & LEARN != 0
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether no name is in it.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// The rule of a key from the claims on it and on shorter keys, in their order.
fn rule(claims: &[NameClaim], candidates: &[usize]) -> Result<NameRule, TableError> {
    let mut rule = NameRule::default();
    let mut used = 0;
    for &place in candidates {
        let claim = &claims[place];
        let action = claim.action(place);
        let Some(head) = &claim.pattern.head else {
            rule.plain = action;
            break;
        };
        let glob = glob(head, action);
        // The same beginning again: the first one has the answer.
        let known = |it: &Glob| (it.head, it.mask) == (glob.head, glob.mask);
        let hidden = rule.globs[..used]
            .iter()
            .any(|it| known(it) && it.shortest <= glob.shortest);
        if hidden {
            continue;
        }
        *rule.globs.get_mut(used).ok_or_else(|| TableError::Globs {
            pattern: claim.pattern.to_string(),
        })? = glob;
        used += 1;
    }
    Ok(rule)
}

fn glob(head: &Beginning, action: NameAction) -> Glob {
    let mask: Vec<u8> = (0..head.octets.len())
        .map(|place| if head.open == Some(place) { 0 } else { 0xff })
        .collect();
    let mask = words(&mask);
    let mut octets = words(&head.octets);
    for (word, mask) in octets.iter_mut().zip(mask) {
        *word &= mask;
    }
    Glob {
        head: octets,
        mask,
        action,
        shortest: head.shortest as u32,
        reserved: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::{format, vec};

    use proptest::prelude::*;

    use super::*;

    /// The four forms, on text.
    fn naive(pattern: &str, name: &str) -> bool {
        let Some((before, behind)) = pattern.split_once('*') else {
            return pattern == name;
        };
        let label = before.ends_with('.') && behind.starts_with('.')
            || before.is_empty() && behind.starts_with('.');
        name.len() >= before.len() + behind.len() + usize::from(label)
            && name.starts_with(before)
            && name.ends_with(behind)
    }

    fn parse(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    fn steer(pattern: &str, class: u16, rank: u8) -> NameClaim {
        NameClaim {
            pattern: parse(pattern),
            aim: Aim::Steer {
                class,
                rewrite: true,
                learn: false,
            },
            rank,
            id: class.into(),
        }
    }

    fn class(table: &NameTable, name: &str) -> Option<u16> {
        table.find(name).map(|action| action.class)
    }

    #[test]
    fn the_forms_of_the_feed_match_what_they_say() {
        for (pattern, yes, no) in [
            (
                "outlook.office.com",
                &["outlook.office.com", "OUTLOOK.office.com"][..],
                &["a.outlook.office.com", "office.com", "xoutlook.office.com"][..],
            ),
            (
                "*.sharepoint.com",
                &["a.sharepoint.com", "a.b.sharepoint.com"],
                &[
                    "sharepoint.com",
                    "asharepoint.com",
                    "a.sharepoint.com.evil.net",
                ],
            ),
            (
                "*cdn.onenote.net",
                &["cdn.onenote.net", "acdn.onenote.net", "a.bcdn.onenote.net"],
                &["cdn.onenote.net.x.y", "acdx.onenote.net"],
            ),
            (
                "*-admin.sharepoint.com",
                &["contoso-admin.sharepoint.com"],
                &["contosoadmin.sharepoint.com"],
            ),
            (
                "autodiscover.*.onmicrosoft.com",
                &[
                    "autodiscover.contoso.onmicrosoft.com",
                    "autodiscover.a.b.onmicrosoft.com",
                ],
                &[
                    "autodiscover.onmicrosoft.com",
                    "xautodiscover.contoso.onmicrosoft.com",
                    "autodiscoverx.contoso.onmicrosoft.com",
                ],
            ),
            (
                "foo*.bar.com",
                &["foo.bar.com", "foox.bar.com", "foo.x.bar.com"],
                &["fo.bar.com", "afoo.bar.com"],
            ),
        ] {
            for name in yes {
                assert!(parse(pattern).matches(name), "{pattern} {name}");
                assert!(
                    NameTable::build(&[steer(pattern, 1, 1)])
                        .unwrap()
                        .find(name)
                        .is_some(),
                    "{pattern} {name}"
                );
            }
            for name in no {
                assert!(!parse(pattern).matches(name), "{pattern} {name}");
                assert!(
                    NameTable::build(&[steer(pattern, 1, 1)])
                        .unwrap()
                        .find(name)
                        .is_none(),
                    "{pattern} {name}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_looked_up_is_refused() {
        for text in [
            "",
            "*",
            "*.com",
            "*com",
            "a.*.b.*.com",
            "a..b",
            "a b.com",
            ".a.com",
            "*..a.com",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
        let long = "x".repeat(45);
        assert_eq!(
            format!("*.{long}.com").parse::<Pattern>(),
            Err(PatternError::LongLabel(format!("*.{long}.com")))
        );
        assert!(format!("{long}.example.com").parse::<Pattern>().is_ok());
        assert!(matches!(
            format!("{long}.{long}.com").parse::<Pattern>(),
            Err(PatternError::TooLong(_))
        ));
    }

    #[test]
    fn the_most_specific_pattern_wins_then_the_higher_category() {
        let table = NameTable::build(&[
            steer("*.office.com", 1, 1),
            steer("outlook.office.com", 2, 3),
            steer("*.onmicrosoft.com", 3, 1),
            steer("autodiscover.*.onmicrosoft.com", 4, 3),
            steer("*.sharepoint.com", 6, 2),
            steer("*.sharepoint.com", 5, 1),
        ])
        .unwrap();
        for (name, expected) in [
            ("a.office.com", Some(1)),
            ("outlook.office.com", Some(2)),
            ("a.outlook.office.com", Some(1)),
            ("a.onmicrosoft.com", Some(3)),
            ("autodiscover.a.onmicrosoft.com", Some(4)),
            ("autodiscover.onmicrosoft.com", Some(3)),
            ("a.sharepoint.com", Some(5)),
            ("example.com", None),
        ] {
            assert_eq!(class(&table, name), expected, "{name}");
        }
    }

    #[test]
    fn an_exclusion_covers_more_specific_names() {
        let exclude = NameClaim {
            aim: Aim::Exclude,
            ..steer("*.corp.example.com", 0, 0)
        };
        let table = NameTable::build(&[steer("mail.corp.example.com", 1, 1), exclude]).unwrap();
        let found = table.find("mail.corp.example.com").unwrap();
        assert_eq!((found.class, found.flags), (0, MATCHED | EXCLUDED));
    }

    #[test]
    fn too_many_beginnings_with_one_end_are_refused() {
        let claims: Vec<NameClaim> = (0..5)
            .map(|n| steer(&format!("h{n}.*.example.com"), n + 1, 1))
            .collect();
        assert!(NameTable::build(&claims[..4]).is_ok());
        assert!(matches!(
            NameTable::build(&claims),
            Err(TableError::Globs { .. })
        ));
    }

    fn label() -> impl Strategy<Value = String> {
        proptest::string::string_regex("[abAB-]{1,3}").unwrap()
    }

    fn name() -> impl Strategy<Value = String> {
        prop::collection::vec(label(), 2..6).prop_map(|labels| labels.join("."))
    }

    fn pattern() -> impl Strategy<Value = String> {
        (
            name(),
            prop::option::of(0_usize..12),
            any::<bool>(),
            any::<bool>(),
        )
            .prop_map(|(name, star, dot, cut)| {
                let Some(star) = star else { return name };
                let star = star % name.len();
                let (before, behind) = name.split_at(star);
                let before = if cut { "" } else { before };
                let behind = behind.trim_start_matches('.');
                let dot = if dot { "." } else { "" };
                format!("{before}*{dot}{behind}")
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_table_says_what_the_naive_matcher_says(
            patterns in prop::collection::vec((pattern(), 0_u8..8, 1_u8..4), 1..12),
            names in prop::collection::vec(name(), 1..12),
        ) {
            let claims: Vec<NameClaim> = patterns
                .iter()
                .filter_map(|(text, aim, rank)| Some((text.parse::<Pattern>().ok()?, aim, rank)))
                .zip(1_u16..)
                .map(|((pattern, aim, rank), class)| NameClaim {
                    pattern,
                    aim: if *aim == 0 { Aim::Exclude } else {
                        Aim::Steer { class, rewrite: aim & 1 != 0, learn: aim & 2 != 0 }
                    },
                    rank: *rank,
                    id: class.into(),
                })
                .collect();
            let Ok(table) = NameTable::build(&claims) else { return Ok(()) };
            for name in names {
                let lower = name.to_ascii_lowercase();
                let mut best: Vec<usize> = (0..claims.len())
                    .filter(|&it| naive(claims[it].pattern.as_str(), &lower))
                    .collect();
                best.sort_by_key(|&it| claims[it].order());
                let expected = best.first().map(|&it| claims[it].action(it));
                prop_assert_eq!(table.find(&name), expected, "{}", name);
                for (it, claim) in claims.iter().enumerate() {
                    prop_assert_eq!(claim.pattern.matches(&name), best.contains(&it), "{} {}", &claim.pattern, name);
                }
            }
        }
    }

    #[test]
    fn the_keys_are_those_of_the_page() {
        let table = NameTable::build(&[steer("*.sharepoint.com", 1, 1)]).unwrap();
        let (bits, key, _) = table.entries().next().unwrap();
        assert_eq!(&key[..15], b"moc\x03tnioperahs\x0a");
        assert_eq!(bits, 15 * 8);
        assert_eq!(vec![table.len(), 1], vec![1, 1]);
    }
}
