//! Connections to servers: to a breakout's resolver over that breakout, and to the server that a
//! client asked, in the client's name.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream};

use super::Way;

/// A socket of an address's family.
pub(super) fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
}

/// Connects to a resolver over a breakout, as probes do.
pub(super) async fn over(way: &Way, resolver: IpAddr) -> io::Result<TcpStream> {
    let address = SocketAddr::new(resolver, 53);
    let socket = socket(address)?;
    socket.bind_device(Some(way.device.as_str().as_bytes()))?;
    setsockopt(&socket, sockopt::Mark, &way.mark.bits())?;
    socket.connect(address).await
}

/// Connects to a server as a client of the LAN: who may ask for what may hang on the address. To a
/// server on this router it is the router that asks, because its answers would go to the client.
pub(super) async fn as_client(client: IpAddr, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(server)?;
    if !is_here(server.ip()) {
        // It holds for both families (ipv6_setsockopt hands SOL_IP on).
        setsockopt(&socket, sockopt::IpTransparent, &true)?;
        socket.bind(SocketAddr::new(client, 0))?;
    }
    socket.connect(server).await
}

/// Whether an address is this router's own: only to such a one a plain socket can be bound.
fn is_here(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}
