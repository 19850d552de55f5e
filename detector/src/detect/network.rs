//! Networks: where a request comes from, and whether it may.

use std::{net::IpAddr, str::FromStr};

/// Those that are routed nowhere outside, where the user names none: loopback, RFC 1918, link-local, unique local (RFC 4193).
const INSIDE: [&str; 8] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// An address, and how many of its first bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    bits: u128,
    prefix: u32,
    v4: bool,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "no network; expected an address, or one with the length of its prefix: 10.0.0.0/8, 2001:db8::/32"
                .to_owned()
        };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.trim().parse().map_err(|_| wrong())?;
        let (bits, v4, width) = number(address);
        let prefix = prefix.map_or(Ok(width), |prefix| prefix.trim().parse().map_err(|_| wrong()))?;
        if prefix > width {
            return Err(wrong());
        }
        Ok(Self { bits, prefix, v4 })
    }
}

impl Network {
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (bits, v4, width) = number(address.to_canonical());
        // A shift by the whole width is one by nothing.
        v4 == self.v4 && (bits ^ self.bits).checked_shr(width - self.prefix).unwrap_or(0) == 0
    }
}

fn number(address: IpAddr) -> (u128, bool, u32) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), true, 32),
        IpAddr::V6(address) => (address.to_bits(), false, 128),
    }
}

/// Whether an address is routed nowhere outside.
#[must_use]
pub fn inside(address: IpAddr) -> bool {
    INSIDE.iter().filter_map(|network| network.parse::<Network>().ok()).any(|network| network.contains(address))
}

/// Where requests may come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    said: Vec<String>,
    parsed: Vec<Network>,
}

impl Networks {
    /// Takes what the policy says, where it has changed.
    pub fn set(&mut self, said: &[String]) {
        if self.parsed.is_empty() || self.said != said {
            self.said = said.to_vec();
            self.parsed = match said {
                [] => INSIDE.iter().filter_map(|network| network.parse().ok()).collect(),
                // They were checked when the configuration was read.
                said => said.iter().filter_map(|network| network.parse().ok()).collect(),
            };
        }
    }

    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        // The node's own requests to itself need no permission.
        address.is_loopback() || self.parsed.iter().any(|network| network.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_of_its_prefix_and_no_others() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("192.0.2.7/31", "192.0.2.6", "192.0.2.8"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::10.0.0.1"),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{network} {outside}");
        }
        for wrong in ["", "10.0.0.0/", "10.0.0.0/33", "::/129", "10/8", "10.0.0.0/-1", "a.b", "10.0.0.0/8/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_networks_of_the_users_own_those_are_inside_that_are_routed_nowhere() {
        let mut networks = Networks::default();
        networks.set(&[]);
        let contain = |networks: &Networks, ip: &str| networks.contain(ip.parse().unwrap());
        for inside in ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "fd00::1", "fe80::1", "::1", "169.254.1.1"]
        {
            assert!(contain(&networks, inside), "{inside}");
        }
        for outside in ["198.51.100.7", "172.32.0.1", "100.64.0.1", "2001:db8::1", "0.0.0.0"] {
            assert!(!contain(&networks, outside), "{outside}");
        }
        networks.set(&["192.0.2.0/24".to_owned()]);
        assert!(contain(&networks, "192.0.2.1") && contain(&networks, "127.0.0.1") && !contain(&networks, "10.1.2.3"));
    }
}
