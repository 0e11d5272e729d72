"""The weights that the foundation adapters can use: repository, revision, files, sizes, hashes, licences.

Where the pins come from: the revisions, sizes and hashes were not read from the hub by us; each was found, equal, in
at least two public repositories that record what they fetched, but for those that docs/weights.md names. A `sha256` or
`revision` of None means that no such record was found: the first file fetched is recorded in the lock file and trusted.
Sizes of the architectures agree with the published ones (tests/engine/perception/test_published_sizes.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file of a repository. `bytes` and `sha256` are None where nothing is pinned."""

    name: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Weights:
    """One model. The first file is the checkpoint; the others configure it."""

    repository: str
    revision: str | None
    licence: str
    files: tuple[File, ...]


def _moge(size: str, revision: str, digest: str, size_bytes: int) -> Weights:
    return Weights(f"Ruicheng/moge-2-{size}-normal", revision, "MIT", (File("model.pt", size_bytes, digest),))


def _sam2(size: str, revision: str, digest: str, size_bytes: int) -> Weights:
    file = File(f"sam2.1_hiera_{size.replace('-', '_')}.pt", size_bytes, digest)
    return Weights(f"facebook/sam2.1-hiera-{size}", revision, "Apache-2.0", (file,))


def _depth_anything(
    variant: str, licence: str, revision: str, digest: str | None = None, size_bytes: int | None = None
) -> Weights:
    return Weights(
        f"depth-anything/Depth-Anything-V2-{variant}-hf",
        revision,
        licence,
        (File("model.safetensors", size_bytes, digest), File("config.json"), File("preprocessor_config.json")),
    )


def _detector(
    repository: str, revision: str, digest: str | None, size_bytes: int | None, tokenizer: bool = False
) -> Weights:
    text = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt") if tokenizer else ()
    names = ("config.json", "preprocessor_config.json", *text)
    checkpoint = File("model.safetensors", size_bytes, digest)
    return Weights(repository, revision, "Apache-2.0", (checkpoint, *(File(name) for name in names)))


CATALOGUE: dict[str, Weights] = {
    "moge-2-vitl-normal": _moge(
        "vitl",
        "b135031bae30b5ac2ae141a0e68717795ce38340",
        "280741fd09bc3f403ccff9967784c2a391b52d2c0742ae3efdb21d9f90cc1a01",
        1_323_815_904,
    ),
    "moge-2-vitb-normal": _moge(
        "vitb",
        "54ad3a693e61907ea4633d13dec6ee682fa09419",
        "16b8110e86d5dc5a849db120ca96ef3a223fd30b0c9146d1d81db504073da5f6",
        419_110_160,
    ),
    "moge-2-vits-normal": _moge(
        "vits",
        "679230677b4d282c6f304189a93e98e14f085902",
        "79a16621928c2bf0ed04659218c55c01075e950507f40bb3332fb4c873d3e1dc",
        140_550_416,
    ),
    "sam2.1-hiera-large": _sam2(
        "large",
        "665f8e2ad61cf5f53d65644ff27c8ee525124610",
        "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
        898_083_611,
    ),
    "sam2.1-hiera-base-plus": _sam2(
        "base-plus",
        "b7320756a13354e7530a63935656d35b2f91a290",
        "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        323_606_802,
    ),
    "sam2.1-hiera-small": _sam2(
        "small",
        "ee5bba1d82bb8749febdf90f45e84b687142ba03",
        "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        184_416_285,
    ),
    "sam2.1-hiera-tiny": _sam2(
        "tiny",
        "de431c4043854a71d8101e17995dfe596bf101a5",
        "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        156_008_466,
    ),
    "depth-anything-v2-small": _depth_anything(
        "Small",
        "Apache-2.0",
        "5426e4f0f36572d16453bbda7a8389317b1bef99",
        "3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70",
        99_173_660,
    ),
    "depth-anything-v2-base": _depth_anything("Base", "CC-BY-NC-4.0", "b1958afc87fb45a9e3746cb387596094de553ed8"),
    "depth-anything-v2-large": _depth_anything(
        "Large",
        "CC-BY-NC-4.0",
        "7581137eff8d4e94f6e796d3baea0e9fa79b22d2",
        "4e01e34ed5549b529b70b92d53226bc370f03041977b390d3dde45d47f516cf9",
        1_341_322_868,
    ),
    "depth-anything-v2-metric-indoor-small": _depth_anything(
        "Metric-Indoor-Small",
        "Apache-2.0",
        "8078d68a9c75a972131914f6afd0c1723be0da7f",
        "e990eb82fbf11b05b7813261196a2b841bdcf5a05f64396724a8987fa90504a3",
        99_173_660,
    ),
    "depth-anything-v2-metric-outdoor-small": _depth_anything(
        "Metric-Outdoor-Small",
        "Apache-2.0",
        "fd2c22027eaf20374204f14099b8341e1925ad39",
        "ad065c77a7421ca55159a1f0db9433397a607690f2d76bb8a6fc54b1be7a3124",
    ),
    "grounding-dino-tiny": _detector(
        "IDEA-Research/grounding-dino-tiny",
        "a2bb814dd30d776dcf7e30523b00659f4f141c71",
        "1a2412ef99bd74bcd3c2a246fa1e48581f8889a1300c9051974741314fc042f3",
        689_359_096,
        tokenizer=True,
    ),
    "grounding-dino-base": _detector(
        "IDEA-Research/grounding-dino-base",
        "12bdfa3120f3e7ec7b434d90674b3396eccf88eb",
        "5548f844c928c4b6f411fa8cbcc2bfa8dbbba437cb1d513975519f93c2a9ed21",
        933_400_872,
        tokenizer=True,
    ),
    "rtdetr-r50vd": _detector("PekingU/rtdetr_r50vd_coco_o365", "457857cec8ac28ddede40ecee9eed2beca321af8", None, None),
    "rf-detr-medium": _detector(
        "Roboflow/rf-detr-medium",
        "1b5b672408f86dd38e05dd3cf3f2e0834e545a59",
        "e52098adc46969794fbdd16e0548a62b81ba0c0f4b14392676edba50be9a69f6",
        None,
    ),
}
