//! The names of a plan, as the kernel looks them up: one longest-prefix lookup for all four forms.
//!
//! The key is the name as it stands in a message, without its first length octet and the root, back
//! to front and in lower case; the length octets between the labels are their boundaries, and 0xff
//! ends a whole name. `outlook.office.com` is `moc 3 eciffo 6 kooltuo ff`.
//!
//! | pattern | key |
//! |---|---|
//! | `outlook.office.com` | `moc 3 eciffo 6 kooltuo ff` |
//! | `*.sharepoint.com` (not the apex) | `moc 3 tnioperahs 10` |
//! | `*cdn.onenote.net` | `ten 3 etoneno 7 ndc` |
//! | `autodiscover.*.onmicrosoft.com` | `moc 3 tfosorcimno 11`, and the head `12 autodiscover` |
//!
//! Patterns that match one name have keys that are beginnings of the name's key, so the longest one
//! knows all of them: the table is closed when it is built, and its rule has the answer.

use bytemuck::{Pod, Zeroable};

use crate::flow;

/// The octets of a key. A longer name is compared by its last 64 octets.
pub const KEY_OCTETS: usize = 64;
/// The most patterns with a `*` behind a beginning that one end of names has.
pub const GLOBS: usize = 4;
/// The octets of such a beginning as it stands in a message.
pub const HEAD_OCTETS: usize = 32;
/// The words of a head.
pub const HEAD_WORDS: usize = HEAD_OCTETS / 8;
/// The most names of a table.
pub const MAX_NAMES: u32 = 16_384;

/// The size of the trie's key: how many bits count, and a key.
pub const TRIE_KEY_BYTES: u32 = 4 + KEY_OCTETS as u32;
/// The size of the trie's value.
pub const RULE_BYTES: u32 = size_of::<NameRule>() as u32;

/// The key that [`KEY_OCTETS`] describe.
pub type Key = [u8; KEY_OCTETS];
/// The beginning of a name in a message, lower case, from the first length octet on, in words of
/// little-endian octets.
pub type Head = [u64; HEAD_WORDS];

/// Bit of [`NameAction::flags`]: there is a pattern.
pub const MATCHED: u16 = 1;
/// Bit of [`NameAction::flags`]: the query goes to the resolver of the class's path.
pub const REWRITE: u16 = 2;
/// Bit of [`NameAction::flags`]: the addresses of the answer are steered as the class.
pub const LEARN: u16 = 4;
/// Bit of [`NameAction::flags`]: the operator leaves the name alone; neither of the others is set.
pub const EXCLUDED: u16 = 8;

/// What happens to queries for a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NameAction {
    /// The class, an index of the registry; 0 for names that are left alone.
    pub class: u16,
    /// [`MATCHED`], [`REWRITE`], [`LEARN`], [`EXCLUDED`]; 0: no pattern matches.
    pub flags: u16,
    /// Which claim it was, by its place in the list that the table was made from.
    pub claim: u32,
}

/// A pattern that asks for the beginning of a name, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Glob {
    /// The beginning.
    pub head: Head,
    /// Which bits of it count.
    pub mask: Head,
    /// What happens then.
    pub action: NameAction,
    /// The least octets of the name in a message, without the root.
    pub shortest: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// What the table knows at the end of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NameRule {
    /// The patterns that are asked first, in their order; unused places have no flags.
    pub globs: [Glob; GLOBS],
    /// The answer when none of them matches.
    pub plain: NameAction,
}

const _: () = assert!(size_of::<NameAction>() == 8 && align_of::<NameAction>() == 4);
const _: () = assert!(size_of::<Glob>() == 80 && align_of::<Glob>() == 8);
const _: () = assert!(size_of::<NameRule>() == 328 && align_of::<NameRule>() == 8);

impl NameRule {
    /// The action for a name that begins with `head` and has `length` octets in a message, without
    /// the root.
    #[inline(always)]
    pub fn decide(&self, head: &Head, length: u32) -> NameAction {
        let mut index = 0;
        while index < GLOBS {
            let glob = &self.globs[index];
            if glob.action.flags == 0 {
                break;
            }
            let mut different = 0;
            let mut word = 0;
            while word < HEAD_WORDS {
                different |= (glob.head[word] ^ head[word]) & glob.mask[word];
                word += 1;
            }
            if different == 0 && length >= glob.shortest {
                return glob.action;
            }
            index += 1;
        }
        self.plain
    }
}

/// A number for a name, by its octets in a message without the root, and by the words of its key; to
/// be [finished](flow::finish).
#[inline(always)]
pub fn hash(length: u32, word: impl Fn(usize) -> u64) -> u64 {
    let mut hash = u64::from(length);
    let mut place = 0;
    while place < KEY_OCTETS / 8 {
        hash = flow::mix(hash, word(place));
        place += 1;
    }
    hash
}

/// The letters of eight octets in lower case; every other octet stays.
#[inline(always)]
pub const fn lower(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let seven = word & (ONES * 0x7f);
    let above_z = seven + ONES * (0x7f - b'Z' as u64);
    let from_a = seven + ONES * (0x80 - b'A' as u64);
    let upper = !word & (from_a ^ above_z) & (ONES * 0x80);
    word | upper >> 2
}

#[cfg(feature = "user")]
mod table;
#[cfg(feature = "user")]
pub use table::{
    Aim, NameClaim, NameTable, Pattern, PatternError, TableError, WholeName, readable,
};

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn lower_case_is_that_of_each_octet(octets: [u8; 8]) {
            proptest::prop_assert_eq!(
                lower(u64::from_le_bytes(octets)),
                u64::from_le_bytes(octets.map(|octet| octet.to_ascii_lowercase()))
            );
        }
    }
}
