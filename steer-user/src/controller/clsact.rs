//! Takes away what steer leaves at a clsact qdisc where the kernel has no TCX (before Linux 6.6):
//! a filter is no link, so it does not go with its pin.

use super::ControllerError;
use crate::{
    datapath::{self, Direction, PinDir},
    system::{
        Kernel,
        facts::Facts,
        filters::{egress_filters, ingress_filters, remove_unused_clsact},
    },
};

/// Removes our filters from every interface, also where no pin tells of it any more; the qdisc too,
/// if steer added it and nobody else uses it. Interfaces whose index is in `keep` are left alone.
/// Whether there was one.
pub(super) async fn remove(
    pins: &PinDir,
    kernel: &Kernel,
    keep: &[u32],
) -> Result<bool, ControllerError> {
    let own_qdiscs = pins.filters()?;
    let mut found = false;
    for link in &Facts::gather(kernel).await?.links {
        if keep.contains(&link.index) {
            continue;
        }
        let hooks = [
            (
                Direction::Ingress,
                ingress_filters(kernel, link.index).await?,
            ),
            (Direction::Egress, egress_filters(kernel, link.index).await?),
        ];
        for (direction, filters) in &hooks {
            let ours = filters.iter().filter(|it| {
                datapath::is_our_filter(it.priority, it.handle, it.program.as_deref())
            });
            for filter in ours {
                datapath::remove_filter(&link.name, *direction, filter.priority)?;
                found = true;
            }
        }
        if own_qdiscs.get(&link.index) == Some(&true) {
            remove_unused_clsact(kernel, link.index).await?;
        }
    }
    Ok(found)
}
