//! What a device does with packets before the stack sees them: offloads (ethtool) and the filters at
//! TC ingress. Read only.

use std::collections::BTreeSet;

use ethtool::{EthtoolAttr, EthtoolFeatureAttr};
use futures_util::TryStreamExt;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

use super::{Kernel, SystemError, kernel::errno_of};

/// The names of the features that are on, as `ethtool -k` knows the kernel's own names: `rx-gro`,
/// `rx-lro`, `hw-tc-offload`, … None where the kernel cannot tell (before Linux 5.6).
pub async fn features(interface: &str) -> Option<BTreeSet<String>> {
    let (connection, mut handle, _) = ethtool::new_connection().ok()?;
    tokio::spawn(connection);
    let answers = handle.feature().get(Some(interface)).execute().await.ok()?;
    let answers: Vec<_> = answers.try_collect().await.ok()?;
    let attributes = answers.iter().flat_map(|it| &it.payload.nlas);
    let active = attributes.filter_map(|attribute| match attribute {
        EthtoolAttr::Feature(EthtoolFeatureAttr::Active(bits)) => Some(bits),
        _ => None,
    });
    Some(
        active
            .flatten()
            .filter(|bit| bit.value)
            .map(|bit| bit.name.clone())
            .collect(),
    )
}

/// A filter at a device's clsact hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// `bpf`, `flower`, `u32`, …
    pub kind: String,
    /// The BPF program's name.
    pub program: Option<String>,
    /// Lower is asked first.
    pub priority: u16,
    /// Its number among those of the same priority.
    pub handle: u32,
}

/// The filters at a device's clsact ingress hook; TCX programs are not among them.
pub async fn ingress_filters(kernel: &Kernel, index: u32) -> Result<Vec<Filter>, SystemError> {
    let failed = |source| SystemError::Netlink {
        what: format!("tc filter show (index {index}) ingress"),
        source,
    };
    let Ok(index) = i32::try_from(index) else {
        return Ok(Vec::new());
    };
    let request = kernel.netlink().traffic_filter(index).get().ingress();
    let messages: Vec<TcMessage> = request.execute().try_collect().await.map_err(failed)?;
    Ok(messages.iter().filter_map(filter).collect())
}

/// The filters at a device's clsact egress hook; TCX programs are not among them.
pub async fn egress_filters(kernel: &Kernel, index: u32) -> Result<Vec<Filter>, SystemError> {
    let failed = |source| SystemError::Netlink {
        what: format!("tc filter show (index {index}) egress"),
        source,
    };
    let Ok(index) = i32::try_from(index) else {
        return Ok(Vec::new());
    };
    let request = kernel.netlink().traffic_filter(index).get().egress();
    let messages: Vec<TcMessage> = request.execute().try_collect().await.map_err(failed)?;
    Ok(messages.iter().filter_map(filter).collect())
}

/// Removes the clsact qdisc of an interface, unless somebody's filter is at its ingress or egress.
pub async fn remove_unused_clsact(kernel: &Kernel, index: u32) -> Result<(), SystemError> {
    let failed = |source| SystemError::Netlink {
        what: format!("tc qdisc del (index {index}) clsact"),
        source,
    };
    let Ok(signed) = i32::try_from(index) else {
        return Ok(());
    };
    let used = !egress_filters(kernel, index).await?.is_empty()
        || !ingress_filters(kernel, index).await?.is_empty();
    if used {
        return Ok(());
    }
    let mut request = kernel.netlink().qdisc().del(signed);
    request.message_mut().header.parent = TcHandle::CLSACT;
    request.message_mut().attributes = vec![TcAttribute::Kind("clsact".into())];
    match request.execute().await {
        // Somebody was quicker.
        Err(error) if errno_of(&error) == Some(libc::ENOENT) => Ok(()),
        result => result.map_err(failed),
    }
}

fn filter(message: &TcMessage) -> Option<Filter> {
    // The kernel lists each priority once more without a handle.
    if u32::from(message.header.handle) == 0 {
        return None;
    }
    let mut filter = Filter {
        kind: String::new(),
        program: None,
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle.into(),
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => filter.kind.clone_from(kind),
            TcAttribute::Options(options) => {
                filter.program = options.iter().find_map(|option| match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(filter)
}
