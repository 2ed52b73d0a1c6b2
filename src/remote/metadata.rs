//! Addresses at which clouds tell a machine about itself, credentials among it: who asks is believed by where they ask from.
//!
//! Sources: the documentation of each cloud's instance metadata service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Networks of version 4 with such addresses, and how many bits of them count.
pub const METADATA_V4: &[(Ipv4Addr, u8)] = &[
    (Ipv4Addr::new(169, 254, 0, 0), 16), // Link-local, all of it: nearly every cloud.
    (Ipv4Addr::new(100, 100, 100, 200), 32), // Alibaba
    (Ipv4Addr::new(168, 63, 129, 16), 32), // Azure's wire server
    (Ipv4Addr::new(192, 0, 0, 192), 32), // Oracle
];

/// Networks of version 6 with such addresses, but for link-local ones.
pub const METADATA_V6: &[(Ipv6Addr, u8)] = &[
    (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128), // AWS
    (Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128),  // Google
    (Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42), 128),   // Scaleway
    (Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200), 128), // Alibaba
];

/// Link-local addresses of version 6, among them OpenStack's, Oracle's and Hetzner's `fe80::a9fe:a9fe`.
pub const LINK_LOCAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// Whether an address is one of them.
#[must_use]
pub fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => METADATA_V4.iter().any(|(network, bits)| {
            let apart = address.to_bits() ^ network.to_bits();
            apart.leading_zeros() >= u32::from(*bits)
        }),
        IpAddr::V6(address) => METADATA_V6.iter().chain([&LINK_LOCAL_V6]).any(|(network, bits)| {
            let apart = address.to_bits() ^ network.to_bits();
            apart.leading_zeros() >= u32::from(*bits)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_by_the_bits_that_count() {
        for (address, wanted) in [
            ("169.254.169.254", true),
            ("169.254.0.0", true),
            ("169.253.255.255", false),
            ("169.255.0.0", false),
            ("100.100.100.200", true),
            ("100.100.100.201", false),
            ("192.0.0.192", true),
            ("192.0.0.1", false),
            ("fe80::a9fe:a9fe", true),
            ("febf::1", true),
            ("fec0::1", false),
            ("fd00:ec2::254", true),
            ("fd00:ec2::255", false),
            ("fd20:ce::254", true),
            ("::1", false),
        ] {
            assert_eq!(is_metadata(address.parse().unwrap()), wanted, "{address}");
        }
    }
}
