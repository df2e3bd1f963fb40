//! Port lists as the feed and the configuration write them: `443,80`, `3478, 3479`, `50000-59999`.

use std::{fmt, str::FromStr};

/// Ports from `lo` to `hi`, both included; `lo <= hi`, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    lo: u16,
    hi: u16,
}

impl PortRange {
    /// The first port.
    pub const fn lo(self) -> u16 {
        self.lo
    }

    /// The last port.
    pub const fn hi(self) -> u16 {
        self.hi
    }
}

/// A set of ports: sorted ranges with a gap between any two, so that equal sets are equal values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Ports(Vec<PortRange>);

/// What is wrong with a port list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortsError {
    /// An item is not a number of 1..=65535, nor two of them with a hyphen.
    #[error("{0:?} is not a port of 1 to 65535, nor a range of them")]
    NotAPort(String),
    /// A range whose end is before its beginning.
    #[error("{0:?} ends before it begins")]
    Backwards(String),
}

impl Ports {
    /// Every port there is.
    pub fn all() -> Self {
        Self(vec![PortRange {
            lo: 1,
            hi: u16::MAX,
        }])
    }

    /// Whether there is no port at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this port is one of them.
    pub fn contains(&self, port: u16) -> bool {
        self.0
            .iter()
            .any(|range| range.lo <= port && port <= range.hi)
    }

    /// The ranges in ascending order.
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }
}

impl FromStr for Ports {
    type Err = PortsError;

    fn from_str(text: &str) -> Result<Self, PortsError> {
        // Present but empty is how the feed sometimes says "none".
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut ranges = text.split(',').map(range).collect::<Result<Vec<_>, _>>()?;
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for next in ranges {
            match merged.last_mut() {
                Some(last) if next.lo <= last.hi.saturating_add(1) => {
                    last.hi = last.hi.max(next.hi);
                }
                _ => merged.push(next),
            }
        }
        Ok(Self(merged))
    }
}

fn range(item: &str) -> Result<PortRange, PortsError> {
    let item = item.trim();
    let (lo, hi) = item.split_once('-').unwrap_or((item, item));
    let (lo, hi) = (port(lo, item)?, port(hi, item)?);
    if lo > hi {
        return Err(PortsError::Backwards(item.to_owned()));
    }
    Ok(PortRange { lo, hi })
}

fn port(text: &str, item: &str) -> Result<u16, PortsError> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(PortsError::NotAPort(item.to_owned())),
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for range in &self.0 {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&range.to_string());
        }
        f.pad(&text)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lo == self.hi {
            return write!(f, "{}", self.lo);
        }
        write!(f, "{}-{}", self.lo, self.hi)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_with_blanks_any_order_and_ranges_are_one_form() {
        for (text, canonical) in [
            ("443,80", "80,443"),
            ("143, 587, 993, 995", "143,587,993,995"),
            ("3478, 3479, 3480, 3481", "3478-3481"),
            ("5061,50000-59999", "5061,50000-59999"),
            ("1-10,5-7,10-20,443", "1-20,443"),
            ("65534-65535,65535", "65534-65535"),
            ("", ""),
            (" ", ""),
        ] {
            assert_eq!(
                text.parse::<Ports>().unwrap().to_string(),
                canonical,
                "{text:?}"
            );
        }
    }

    #[test]
    fn nonsense_is_no_port() {
        for text in [
            "0", "65536", "443,", ",", "http", "80-", "-80", "1-2-3", "+443", "443;80", "0-5",
        ] {
            assert!(
                matches!(text.parse::<Ports>(), Err(PortsError::NotAPort(_))),
                "{text:?}"
            );
        }
        assert_eq!(
            "443-80".parse::<Ports>(),
            Err(PortsError::Backwards("443-80".into()))
        );
    }

    #[test]
    fn a_range_contains_its_ends_and_nothing_outside() {
        let ports: Ports = "80,3478-3481".parse().unwrap();
        for (port, inside) in [
            (79, false),
            (80, true),
            (81, false),
            (3477, false),
            (3478, true),
            (3481, true),
            (3482, false),
        ] {
            assert_eq!(ports.contains(port), inside, "{port}");
        }
    }
}
