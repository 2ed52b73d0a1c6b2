//! Images on their way: from one store into a real registry, and into others.

use std::sync::{Arc, Mutex};

use super::{
    Image, ImageError, Refresh, assemble, base_layers, fetch_layers, load, publish, resolve, upload,
};
use crate::{
    event::{Emit, Event, silent},
    layer::{LayerSummary, LayerWriter},
    oci::{Codec, Descriptor, Document, ImageConfig, Index, MediaType, Platform, Reference},
    registry::{Client, rounds::RealRegistry},
    store::{ImageRecord, LayerRecord, Store},
    tree::TreePath,
};

/// A store in a folder of its own.
struct Place {
    store: Store,
    _folder: tempfile::TempDir,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    Place { store: Store::open(folder.path()).unwrap(), _folder: folder }
}

/// A layer with one whiteout, which is a layer like any other.
fn layer(store: &Store, name: &str) -> LayerSummary {
    let mut writer = LayerWriter::new(store.blob_writer().unwrap());
    writer.whiteout(&TreePath::parse(name).unwrap()).unwrap();
    let (blob, summary) = writer.finish().unwrap();
    blob.commit(Some(summary.diff_id.0)).unwrap();
    store.put_listing(summary.diff_id, &summary.listing.encode()).unwrap();
    let (tar_bytes, content_bytes) = (summary.tar_bytes, summary.content_bytes);
    let record = LayerRecord { tar_bytes, content_bytes, compressed: Vec::new() };
    store.put_layer(summary.diff_id, &record).unwrap();
    summary
}

fn config(architecture: &str) -> ImageConfig {
    ImageConfig {
        architecture: architecture.to_owned(),
        os: "linux".to_owned(),
        ..ImageConfig::default()
    }
}

fn image(store: &Store, architecture: &str, layers: &[&str]) -> Image {
    let diff_ids: Vec<_> = layers.iter().map(|name| layer(store, name).diff_id).collect();
    assemble(store, &config(architecture), &diff_ids, &[]).unwrap()
}

fn record(target: Descriptor, image: &Image) -> ImageRecord {
    ImageRecord {
        reference: None,
        target,
        config: image.config.digest(),
        platforms: vec![image.config.value.platform()],
        stored_at: 0,
        created: None,
        size: 0,
        pulled: false,
    }
}

fn record_of(image: &Image) -> ImageRecord {
    record(image.manifest.descriptor(MediaType::MANIFEST), image)
}

fn amd64() -> Platform {
    Platform::linux("amd64", None)
}

/// An [`Emit`], and one line for each event it took.
fn listener() -> (Emit, Arc<Mutex<Vec<String>>>) {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&heard);
    let emit: Emit = Arc::new(move |event| {
        if let Event::Transfer { done, total, .. } = &event {
            if done == total {
                log.lock().unwrap().push("moved".to_owned());
            }
        } else if let Event::TransferSkipped { reason, .. } = event {
            log.lock().unwrap().push(reason.to_owned());
        } else {
            log.lock().unwrap().push(format!("{event:?}"));
        }
    });
    (emit, heard)
}

fn sorted(heard: &Mutex<Vec<String>>) -> Vec<String> {
    let mut lines = std::mem::take(&mut *heard.lock().unwrap());
    lines.sort();
    lines
}

async fn send(place: &Place, client: &Client, image: &Image, to: &Reference) -> Vec<String> {
    let (emit, heard) = listener();
    let record = record_of(image);
    let sent = upload(&place.store, client, &record, to, Codec::Gzip, "app", &emit).await.unwrap();
    publish(client, &sent).await.unwrap();
    sorted(&heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_once_pulled_verified_and_built_upon_without_its_layers() {
    let registry = RealRegistry::start().await;
    let client = RealRegistry::client_of(&[&registry]);
    let (home, to) = (place(), registry.image("team/base:1"));
    let base = image(&home.store, "amd64", &["a", "b"]);
    assert_eq!(send(&home, &client, &base, &to).await, ["moved", "moved", "moved"]);
    // Nothing is new: nothing is asked but where the tag points.
    assert_eq!(send(&home, &client, &base, &to).await, Vec::<String>::new());

    let away = place();
    let missing =
        resolve(&away.store, &client, &registry.image("team/no:1"), &amd64(), Refresh::Missing)
            .await;
    assert!(matches!(missing, Err(ImageError::Registry(_))), "{missing:?}");
    let found = resolve(&away.store, &client, &to, &amd64(), Refresh::Missing).await.unwrap();
    assert_eq!(found.config.raw, base.config.raw);
    for layer in &found.manifest.value.layers {
        assert_eq!(away.store.blob_size(layer.digest), None);
    }
    let mut diff_ids = found.config.value.rootfs.diff_ids.clone();
    diff_ids.push(layer(&away.store, "c").diff_id);
    let app = assemble(&away.store, &config("amd64"), &diff_ids, &base_layers(&found)).unwrap();
    let heard = send(&away, &client, &app, &registry.image("team/app:1")).await;
    assert_eq!(heard, ["mounted", "mounted", "moved", "moved"]);
    for layer in &found.manifest.value.layers {
        assert_eq!(away.store.blob_size(layer.digest), None, "it was mounted, not fetched");
    }

    let (emit, heard) = listener();
    fetch_layers(&away.store, &client, &found, "base", &emit).await.unwrap();
    assert_eq!(sorted(&heard), ["moved", "moved"]);
    for diff_id in &found.config.value.rootfs.diff_ids {
        assert_eq!(away.store.listing(*diff_id).unwrap(), home.store.listing(*diff_id).unwrap());
        let tar_bytes = |store: &Store| store.layer(*diff_id).unwrap().unwrap().tar_bytes;
        assert_eq!(tar_bytes(&away.store), tar_bytes(&home.store));
    }
    fetch_layers(&away.store, &client, &found, "base", &emit).await.unwrap();
    assert_eq!(sorted(&heard), ["exists", "exists"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_that_are_pushed_at_once_send_each_blob_once_and_a_layer_is_fetched_although_it_is_unpacked()
 {
    let registry = RealRegistry::start().await;
    let client = RealRegistry::client_of(&[&registry]);
    let (home, away) = (place(), place());
    let base = image(&home.store, "amd64", &["a", "b"]);
    let tags: Vec<Reference> =
        (0..4).map(|tag| registry.image(&format!("team/base:{tag}"))).collect();
    let [one, two, three, four] = [0, 1, 2, 3].map(|at| send(&home, &client, &base, &tags[at]));
    let (one, two, three, four) = tokio::join!(one, two, three, four);
    let mut heard = [one, two, three, four].concat();
    heard.sort();
    assert_eq!(heard, [vec!["exists"; 9], vec!["moved"; 3]].concat());

    // What a damaged blob leaves when it was taken away: a directory that can be run on, and nothing to send.
    let found = resolve(&away.store, &client, &tags[0], &amd64(), Refresh::Missing).await.unwrap();
    fetch_layers(&away.store, &client, &found, "base", &silent()).await.unwrap();
    let (layer, blob) =
        (found.config.value.rootfs.diff_ids[0], found.manifest.value.layers[0].digest);
    let folder = away.store.staging().unwrap();
    let upper = folder.path().join("upper");
    std::fs::create_dir(&upper).unwrap();
    away.store.commit_snapshot(&upper, layer).unwrap();
    std::fs::remove_file(away.store.root().join("blobs/sha256").join(blob.hex())).unwrap();
    let absent = super::absent_layers(&away.store, &found).unwrap();
    assert_eq!(absent.iter().map(|absent| absent.layer).collect::<Vec<_>>(), [layer]);
    let (emit, heard) = listener();
    fetch_layers(&away.store, &client, &found, "base", &emit).await.unwrap();
    assert_eq!(sorted(&heard), ["exists", "moved"]);
    assert!(super::absent_layers(&away.store, &found).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_resolved_needs_no_registry_again_unless_it_is_refreshed() {
    let registry = RealRegistry::start().await;
    let client = RealRegistry::client_of(&[&registry]);
    let (home, away, to) = (place(), place(), registry.image("team/base:1"));
    let base = image(&home.store, "amd64", &["a"]);
    send(&home, &client, &base, &to).await;
    let first = resolve(&away.store, &client, &to, &amd64(), Refresh::Always).await.unwrap();
    let pinned = to.with_digest(first.manifest.digest());
    resolve(&away.store, &client, &pinned, &amd64(), Refresh::Missing).await.unwrap();
    let newer = image(&home.store, "amd64", &["a", "b"]);
    send(&home, &client, &newer, &to).await;
    let same = resolve(&away.store, &client, &to, &amd64(), Refresh::Missing).await.unwrap();
    assert_eq!(same.config.raw, base.config.raw);
    let fresh = resolve(&away.store, &client, &to, &amd64(), Refresh::Always).await.unwrap();
    assert_eq!(fresh.config.raw, newer.config.raw);
    drop(registry);
    for (name, wanted) in [(&to, &newer), (&pinned, &base)] {
        let known = resolve(&away.store, &client, name, &amd64(), Refresh::Missing).await.unwrap();
        assert_eq!(known.config.raw, wanted.config.raw);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_go_from_registry_to_registry_and_leave_nothing_behind() {
    let (one, two) = (RealRegistry::start().await, RealRegistry::start().await);
    let client = RealRegistry::client_of(&[&one, &two]);
    let (home, away, from) = (place(), place(), one.image("team/base:1"));
    send(&home, &client, &image(&home.store, "amd64", &["a"]), &from).await;
    let found = resolve(&away.store, &client, &from, &amd64(), Refresh::Missing).await.unwrap();
    let to = two.image("other/base:1");
    assert_eq!(send(&away, &client, &found, &to).await, ["moved", "moved"]);
    let copied = client.resolve(&to).await.unwrap();
    assert_eq!(copied.digest, found.manifest.digest());
    assert_eq!(away.store.blob_size(found.manifest.value.layers[0].digest), None);
    let own = std::fs::read_dir(away.store.root().join("tmp")).unwrap().next().unwrap().unwrap();
    assert_eq!(std::fs::read_dir(own.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_pushed_with_its_children_and_each_platform_is_found_in_it() {
    let registry = RealRegistry::start().await;
    let client = RealRegistry::client_of(&[&registry]);
    let (home, to) = (place(), registry.image("team/many:1"));
    let images = [image(&home.store, "amd64", &["a"]), image(&home.store, "arm64", &["b"])];
    let child = |image: &Image| Descriptor {
        platform: Some(image.config.value.platform()),
        ..image.manifest.descriptor(MediaType::MANIFEST)
    };
    let index = Document::write(Index {
        schema_version: 2,
        media_type: Some(MediaType::new(MediaType::INDEX)),
        artifact_type: None,
        manifests: images.iter().map(child).collect(),
        subject: None,
        annotations: Default::default(),
    });
    home.store.put_blob(&index.raw).unwrap();
    let record = record(index.descriptor(MediaType::INDEX), &images[0]);
    let sent =
        upload(&home.store, &client, &record, &to, Codec::Zstd, "app", &silent()).await.unwrap();
    assert!(client.peek(&to).await.unwrap().is_none(), "no tag moves before it is published");
    publish(&client, &sent).await.unwrap();
    let away = place();
    for (architecture, wanted) in ["amd64", "arm64"].iter().zip(&images) {
        let platform = Platform::linux(architecture, None);
        let found = resolve(&away.store, &client, &to, &platform, Refresh::Missing).await.unwrap();
        assert_eq!(found.config.raw, wanted.config.raw);
        fetch_layers(&away.store, &client, &found, "app", &silent()).await.unwrap();
        let kept = load(&home.store, &record, &platform).unwrap();
        assert_eq!(kept.config.raw, wanted.config.raw);
    }
    let other =
        resolve(&away.store, &client, &to, &Platform::linux("s390x", None), Refresh::Missing).await;
    assert!(matches!(other, Err(ImageError::Platform { .. })), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_the_config_says_is_refused() {
    let registry = RealRegistry::start().await;
    let client = RealRegistry::client_of(&[&registry]);
    let (home, away, to) = (place(), place(), registry.image("team/lie:1"));
    let honest = image(&home.store, "amd64", &["a"]);
    send(&home, &client, &honest, &to).await;
    let found = resolve(&away.store, &client, &to, &amd64(), Refresh::Missing).await.unwrap();
    let mut lie = found.clone();
    lie.config.value.rootfs.diff_ids = vec![layer(&home.store, "b").diff_id];
    let error = fetch_layers(&away.store, &client, &lie, "app", &silent()).await.unwrap_err();
    assert!(error.to_string().contains("the config says"), "{error}");
    fetch_layers(&away.store, &client, &found, "app", &silent()).await.unwrap();
}

#[test]
fn every_transfer_can_run_on_any_thread() {
    fn is_send<T: Send>(_: T) {}
    let place = place();
    let client = Client::new(Default::default()).unwrap();
    let base = image(&place.store, "amd64", &["a"]);
    let (record, emit) = (record_of(&base), silent());
    let to: Reference = "localhost:1/a:1".parse().unwrap();
    is_send(resolve(&place.store, &client, &to, &amd64(), Refresh::Missing));
    is_send(fetch_layers(&place.store, &client, &base, "app", &emit));
    is_send(upload(&place.store, &client, &record, &to, Codec::Gzip, "app", &emit));
}
