"""Synthetic subjects from the MNI152 template: T1 image and tissue labels, deformed smoothly, shaded and noisy.

The template and its grey- and white-matter maps (ICBM 2009a nonlinear symmetric, skull-stripped, 1 mm) lie inside the nilearn wheel,
so real anatomy is there without a download. A subject is a pure function of (seed, subject number, spacing).

Legend: X Y Z voxels in the order of the NIfTI file. The volumes of a Template or Subject are (X, Y, Z).
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.errors import ConfigError, DataError

Volume = npt.NDArray[np.float32]

LABELS = {"background": 0, "grey matter": 1, "white matter": 2}
MIN_SPACING_MM, MAX_SPACING_MM = 1.0, 6.0
_TEMPLATE_FILES = {name: f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz" for name in ("t1", "gm", "wm")}
_MARGIN_MM = 8.0
_DEFORMATION_MM = 4.0
_DEFORMATION_SCALE_MM = 22.0
_BIAS_SCALE_MM = 40.0
_BIAS_STRENGTH = 0.12
_NOISE = 0.03


@dataclass(frozen=True)
class Template:
    """The 1 mm template, cropped to the head with a margin. All volumes share one shape, scaled to [0, 1]."""

    t1: Volume
    gm: Volume
    wm: Volume


@dataclass(frozen=True)
class Subject:
    """One synthetic subject: T1 intensities (0 outside the head) and labels 0, 1, 2 on a grid of `spacing_mm`."""

    image: Volume
    labels: npt.NDArray[np.uint8]
    spacing_mm: float


def template_folder() -> Path:
    """Where nilearn keeps the template; found without importing nilearn. Raises ConfigError when it is not installed."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "demo: the package nilearn, whose wheel holds the MNI152 template, is not installed. Run: pip install 'nnfleet[demo]'"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"


def load_template(spacing_mm: float) -> Template:
    """The template, low-pass filtered for sampling at `spacing_mm`. Raises DataError when the wheel no longer holds the files."""
    import nibabel
    from scipy import ndimage

    folder = template_folder()
    volumes = {}
    for name, file in _TEMPLATE_FILES.items():
        if not (folder / file).is_file():
            raise DataError(f"demo: {folder / file} does not exist in this version of nilearn. Run: pip install 'nilearn>=0.11,<0.15'")
        volumes[name] = np.asarray(nibabel.load(folder / file).dataobj, dtype=np.float32) / 255.0
    occupied = ndimage.find_objects((volumes["t1"] > 0).astype(np.int8))[0]
    margin = int(_MARGIN_MM)
    window = tuple(slice(max(0, s.start - margin), s.stop + margin) for s in occupied)
    sigma = spacing_mm / 2.355 if spacing_mm > 1 else 0.0  # a voxel of `spacing_mm` averages over its width
    smooth = {name: ndimage.gaussian_filter(volume[window], sigma) if sigma else volume[window] for name, volume in volumes.items()}
    return Template(smooth["t1"], smooth["gm"], smooth["wm"])


def make_subject(template: Template, *, seed: int, number: int, spacing_mm: float) -> Subject:
    """Subject `number` of `seed`: a smooth random deformation and head size, own contrast, a bias field and noise."""
    from scipy import ndimage

    rng = np.random.default_rng([seed, number])
    source = _source_coordinates(template.t1.shape, rng, spacing_mm)
    t1, gm, wm = (ndimage.map_coordinates(volume, source, order=1, mode="constant") for volume in (template.t1, template.gm, template.wm))
    labels_XYZ = np.argmax(np.stack([1 - gm - wm, gm, wm]), axis=0).astype(np.uint8)
    shape = t1.shape
    inside = t1 > 0.05
    contrast = t1 ** rng.uniform(0.85, 1.2)
    bias = np.exp(_smooth_field(shape, _BIAS_SCALE_MM / spacing_mm, rng) * _BIAS_STRENGTH)
    noisy = contrast * bias + rng.normal(0, _NOISE, shape)
    image_XYZ = np.where(inside, np.clip(noisy, 0.01, None) * rng.uniform(600, 1000), 0)
    return Subject(image_XYZ.astype(np.float32), labels_XYZ, spacing_mm)


def _source_coordinates(shape: tuple[int, ...], rng: np.random.Generator, spacing_mm: float) -> Volume:
    """For each voxel of the subject's grid the point of the template (3, X, Y, Z; in 1 mm voxels) that it shows."""
    grid_shape = tuple(int(np.ceil(length / spacing_mm)) for length in shape)
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) * spacing_mm for n in grid_shape], indexing="ij"))
    centre = (np.array(shape, dtype=np.float32) - 1)[:, None, None, None] / 2
    linear = _rotation(rng.uniform(-0.12, 0.12, 3)) * rng.uniform(0.93, 1.08, 3)[None, :]
    turned = np.einsum("ij,jxyz->ixyz", linear, grid - centre) + centre
    displacement = np.stack([_smooth_field(grid_shape, _DEFORMATION_SCALE_MM / spacing_mm, rng) for _ in range(3)])
    return np.asarray(turned + _DEFORMATION_MM * displacement, dtype=np.float32)


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rotation about x, then y, then z by `angles` in radians, as a 3 x 3 matrix."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", angles).as_matrix())


def _smooth_field(shape: tuple[int, ...], sigma_voxels: float, rng: np.random.Generator) -> Volume:
    """Gaussian random field of zero mean and unit deviation, smooth over `sigma_voxels`."""
    from scipy import ndimage

    field = ndimage.gaussian_filter(rng.normal(size=shape), sigma_voxels, mode="nearest")
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-9), dtype=np.float32)


def write_subject(subject: Subject, case_id: str, raw_dataset: Path) -> None:
    """Write image and labels where nnU-Net's raw format has them."""
    import nibabel

    affine = np.diag([subject.spacing_mm] * 3 + [1.0])
    for volume, path in (
        (subject.image, raw_dataset / "imagesTr" / f"{case_id}_0000.nii.gz"),
        (subject.labels, raw_dataset / "labelsTr" / f"{case_id}.nii.gz"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume, affine), path)


def write_dataset_json(raw_dataset: Path, num_cases: int) -> None:
    """Write nnU-Net's dataset.json of the demo dataset."""
    content = {"channel_names": {"0": "T1"}, "labels": LABELS, "numTraining": num_cases, "file_ending": ".nii.gz", "name": "MNIBrain"}
    (raw_dataset / "dataset.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
