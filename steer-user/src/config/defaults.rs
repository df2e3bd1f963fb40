//! What holds for every key that a configuration leaves out.

use std::time::Duration;

use super::{Mode, Owner, XdpChoice};
use crate::endpoints::Category;

pub(super) const MODE: Mode = Mode::Mark;
pub(super) const RELOAD_ON_CHANGE: bool = true;
/// What Microsoft recommends to route directly.
pub(super) const CATEGORIES: [Category; 2] = [Category::Optimize, Category::Allow];
pub(super) const OWN_CATEGORY: Category = Category::Allow;
pub(super) const PRIORITY: u8 = 1;
pub(super) const WEIGHT: u8 = 1;
/// Longer than conntrack keeps a UDP stream (`nf_conntrack_udp_timeout_stream`, 120 s).
pub(super) const WATCH_PERIOD: Duration = Duration::from_secs(130);
pub(super) const OWNER: Owner = Owner::Steer;
/// The main table.
pub(super) const ROUTE_TABLES: [u32; 1] = [254];
pub(super) const XDP: XdpChoice = XdpChoice::Auto;
pub(super) const LEARN: bool = true;
pub(super) const PIN_DIR: &str = "/sys/fs/bpf/steer";
pub(super) const STATE_DIR: &str = "/var/lib/steer";
pub(super) const RUN_DIR: &str = "/run/steer";
