//! What a registry on loopback says of its tags, asked by curl.

use std::process::Command;

use idpbuilder::oci::Digest;

use crate::{
    support::{Done, json},
    tally::{Finding, Tally},
};

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
