//! What a registry on loopback says of its tags, asked by curl.

use std::{fs, process::Command, time::Duration};

use idpbuilder::oci::Digest;

use crate::{
    support::{Done, Patience, json},
    tally::{Finding, Tally},
};

/// How long a registry may be at something, of the processor time of who waits.
const REST_MAX: Duration = Duration::from_secs(60);
/// States of a connection in /proc/net/tcp: open at both ends, and closed at the other one alone.
const OPEN: [&str; 2] = ["01", "08"];

/// Waits until a registry is through with all that it was asked: it does what somebody asked for who was killed meanwhile,
/// and writes its links in place. Until then the connection stays open.
pub(crate) fn await_rest(address: &str) {
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let ours = format!(":{port:04X}");
    let is_open = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words[1].ends_with(&ours) && OPEN.contains(&words[3])
    };
    let patience = Patience::new(REST_MAX);
    while fs::read_to_string("/proc/net/tcp").unwrap().lines().any(is_open) {
        assert!(!patience.is_over(), "the registry at {address} comes to no rest");
    }
}

fn curl(words: &[&str]) -> Done {
    let mut curl = Command::new("curl");
    Done::of(curl.args(["-sS", "--fail", "--noproxy", "*"]).args(words))
}

/// What a registry says a tag is, when it knows it.
pub(crate) fn tag_of(address: &str, repository: &str, tag: &str) -> Option<(Digest, String)> {
    let url = format!("http://{address}/v2/{repository}/manifests/{tag}");
    let done = curl(&["-H", "Accept: application/vnd.oci.image.manifest.v1+json", &url]);
    (done.code == 0).then(|| (Digest::of(done.out.as_bytes()), done.out))
}

/// A tag of a registry must be what it was or what it shall be, and whole.
pub(crate) fn judge_tag(
    (address, repository, tag): (&str, &str, &str),
    allowed: &[Option<Digest>],
    tally: &mut Tally,
) {
    let found = tag_of(address, repository, tag);
    let digest = found.as_ref().map(|(digest, _)| *digest);
    if !allowed.contains(&digest) {
        tally.find(Finding::Lost, format!("{repository}:{tag} is {digest:?}, not of {allowed:?}"));
    }
    let Some((_, manifest)) = found else { return };
    let manifest = json(&manifest);
    let layers = manifest["layers"].as_array().unwrap();
    for blob in layers.iter().chain([&manifest["config"]]) {
        let url =
            format!("http://{address}/v2/{repository}/blobs/{}", blob["digest"].as_str().unwrap());
        if curl(&["--head", &url]).code != 0 {
            tally.find(Finding::Dangling, format!("{repository}:{tag} lacks {}", blob["digest"]));
        }
    }
}
