//! Real captures as inputs: as they are, and with addresses that the plan speaks of.

use std::{fs::File, io::Read as _, path::Path};

use pcap_parser::{Block, PcapBlockOwned, create_reader};

/// LINKTYPE_ETHERNET.
const ETHERNET: i32 = 1;
/// LINKTYPE_RAW, LINKTYPE_IPV4, LINKTYPE_IPV6 and an old number of the first.
const RAW: [i32; 4] = [101, 228, 229, 12];

/// The frames of a capture file; packets without an Ethernet header get one. Nothing of files that
/// cannot be read, some of which are broken on purpose.
pub fn frames(path: &Path) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut bytes = Vec::new();
    if File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .is_err()
    {
        return frames;
    }
    // Room for the whole file: nothing has to be read again.
    let Ok(mut reader) = create_reader(bytes.len() + 1024, &bytes[..]) else {
        return frames;
    };
    let mut link = ETHERNET;
    loop {
        match reader.next() {
            Ok((offset, block)) => {
                let packet = match block {
                    PcapBlockOwned::LegacyHeader(header) => {
                        link = header.network.0;
                        None
                    }
                    PcapBlockOwned::Legacy(packet) => Some(packet.data.to_vec()),
                    PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                        link = interface.linktype.0;
                        None
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                        let length = (packet.caplen as usize).min(packet.data.len());
                        Some(packet.data[..length].to_vec())
                    }
                    PcapBlockOwned::NG(_) => None,
                };
                frames.extend(packet.map(|packet| framed(packet, link)));
                reader.consume(offset);
            }
            Err(_) => return frames,
        }
    }
}

fn framed(packet: Vec<u8>, link: i32) -> Vec<u8> {
    if !RAW.contains(&link) {
        return packet;
    }
    let ether_type = match packet.first().map(|byte| byte >> 4) {
        Some(6) => [0x86, 0xdd],
        _ => [0x08, 0x00],
    };
    [&[0; 12][..], &ether_type, &packet].concat()
}
