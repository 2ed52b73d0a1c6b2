//! Which extended attributes belong into a layer, and in which form.
//!
//! Pure: knows names and bytes, no files.

/// Longest name of an attribute, in bytes (Linux's `XATTR_NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// Largest value of an attribute, in bytes (Linux's `XATTR_SIZE_MAX`).
const VALUE_BYTES_MAX: usize = 64 << 10;

/// File capabilities.
const CAPABILITY: &[u8] = b"security.capability";

/// Lengths and revisions of `struct vfs_ns_cap_data`, see `linux/capability.h`.
const CAPABILITY_V2_BYTES: usize = 20;
const CAPABILITY_V3_BYTES: usize = 24;
const CAPABILITY_V2: u8 = 2;
const CAPABILITY_V3: u8 = 3;

/// Whether an attribute is overlay's own book-keeping: a layer that could set it would reach into
/// the directories below it.
pub(super) fn is_overlay(name: &[u8]) -> bool {
    [&b"trusted.overlay."[..], b"user.overlay.", b"user.fuseoverlayfs."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Whether an attribute found on a file of a snapshot belongs into the layer made of it.
pub(super) fn is_exported(name: &[u8]) -> bool {
    !is_overlay(name) && !name.starts_with(b"user.") && name != b"security.selinux"
}

/// Whether an attribute of a layer is set on the file when it is unpacked. Labels are the host's
/// business, and would be refused there anyway.
pub(super) fn is_applied(name: &[u8]) -> bool {
    !is_overlay(name) && name != b"security.selinux"
}

/// Says what is wrong with an attribute, if something is.
pub(super) fn refusal(name: &[u8], value: &[u8]) -> Option<&'static str> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        Some("the name of an extended attribute is empty or longer than 255 bytes")
    } else if name.contains(&0) || name.contains(&b'=') {
        // An equals sign cannot be told from the one that ends a PAX key.
        Some("the name of an extended attribute has a NUL or an equals sign")
    } else if value.len() > VALUE_BYTES_MAX {
        Some("the value of an extended attribute is longer than 64 KiB")
    } else {
        None
    }
}

/// The value as it stands in a layer: file capabilities that were set in a user namespace (v3) lose
/// the namespace's root id (v2), which means nothing elsewhere.
pub(super) fn exported_value(name: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let v3 = value.len() == CAPABILITY_V3_BYTES && value[3] == CAPABILITY_V3;
    if name == CAPABILITY && v3 {
        value.truncate(CAPABILITY_V2_BYTES);
        value[3] = CAPABILITY_V2;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_a_namespace_become_plain_ones() {
        let mut v3 = vec![1, 0, 0, 3];
        v3.extend(0..16);
        v3.extend([0xa0, 0x86, 1, 0]);
        let mut v2 = vec![1, 0, 0, 2];
        v2.extend(0..16);
        assert_eq!(exported_value(b"security.capability", v3.clone()), v2);
        assert_eq!(exported_value(b"security.capability", v2.clone()), v2);
        assert_eq!(exported_value(b"security.other", v3.clone()), v3);
    }

    #[test]
    fn overlays_own_attributes_and_the_hosts_are_left_out() {
        for (name, applied, exported) in [
            (&b"security.capability"[..], true, true),
            (b"security.ima", true, true),
            (b"user.mime_type", true, false),
            (b"security.selinux", false, false),
            (b"trusted.overlay.redirect", false, false),
            (b"user.overlay.opaque", false, false),
            (b"user.fuseoverlayfs.opaque", false, false),
        ] {
            assert_eq!((is_applied(name), is_exported(name)), (applied, exported), "{name:?}");
        }
    }
}
