"""The crop cache: built, resumed, opened, and refused where it cannot be trusted."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, shell_environment, write_face_set
from PIL import Image

from kernels import RaggedImages, crop_faces
from pose.cache import INDEX, JOURNAL, MANIFEST, PIXELS, build_cache, cache_folder, open_cache, open_or_build
from pose.data.images import image_size, read_image
from pose.data.wflw import load_wflw
from pose.errors import InputError
from pose.geometry import PADDING, crop_matrix, mirrored_center
from pose.loader import MemoryLoader, fits
from pose.regions import decode_all, ragged, training_reach

REACH = training_reach(0.25)
FILES = (PIXELS, INDEX, MANIFEST)


def same(one: RaggedImages, other: RaggedImages) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


@pytest.fixture
def made(face_set: Path, tmp_path: Path) -> Path:
    """A finished cache of the twelve training faces."""
    folder = tmp_path / "cache"
    assert build_cache(folder, load_wflw(face_set, "train"), REACH, label="decoding")
    return folder


def test_a_cache_holds_the_regions_that_decoding_gives(face_set: Path, made: Path) -> None:
    faces = load_wflw(face_set, "train")
    assert same(open_cache(made, faces, REACH), ragged(decode_all(faces, REACH, "decoding")))
    assert same(open_cache(made, faces, 1.0), open_cache(made, faces, REACH))  # large enough is good enough
    assert not build_cache(made, faces, REACH, label="decoding")
    assert sorted(entry.name for entry in made.iterdir()) == sorted([*FILES, ".lock"])


def test_real_faces_crop_from_the_cache_as_from_their_pictures(wflw_samples: Path, tmp_path: Path) -> None:
    faces = load_wflw(wflw_samples / "wflw_mini", "test")
    images = open_or_build(tmp_path, faces, REACH, "decoding")
    every, width = torch.arange(len(faces)), images.full_width.numpy()
    pictures = [torch.from_numpy(np.array(read_image(path))) for path in faces.image]
    for flip in (False, True):
        center = mirrored_center(faces.center, width) if flip else faces.center
        flips = torch.full((len(faces),), flip)
        for rotation in (-60.0, 0.0, 45.0):
            for factor in (0.75, 1.25):
                side = faces.side * PADDING * factor
                matrix = torch.from_numpy(crop_matrix(center, side, np.full(len(faces), rotation), 256))
                options = {"mode": "opencv4", "normalize": False, "dtype": torch.uint8}
                found = crop_faces(images, every, matrix, flips, **options)  # type: ignore[arg-type]
                wanted = crop_faces(RaggedImages.from_images(pictures), every, matrix, flips, **options)  # type: ignore[arg-type]
                assert torch.equal(found, wanted)


# Turned pictures: their header's width is the array's height
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_header_tells_the_size_of_the_decoded_picture(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    height, width = read_image(tmp_path / "turned.jpg").shape[:2]
    assert image_size(tmp_path / "turned.jpg") == (width, height)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _say(**values: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **values}))

    return change


def _region_outside(path: Path) -> None:
    """An index that its manifest vouches for, but that points past the pixels."""
    import hashlib

    table = np.load(path)
    table[-1, 0] += 1
    np.save(path, table)
    _say(index_sha256=hashlib.sha256(path.read_bytes()).hexdigest())(path.parent / MANIFEST)


@pytest.mark.parametrize(
    ("name", "harm", "sentence"),
    [
        (PIXELS, _cut, "bytes, its manifest says"),
        (PIXELS, _flip_a_bit, "its bytes are not those its manifest was written for"),
        (PIXELS, Path.unlink, "No such file"),
        (INDEX, _cut, "its bytes are not those its manifest was written for"),
        (INDEX, _region_outside, "a region lies outside the pixels"),
        (INDEX, Path.unlink, "No such file"),
        (MANIFEST, Path.unlink, "holds no finished crop cache; run pose.prepare"),
        (MANIFEST, _cut, "not JSON"),
        (MANIFEST, lambda path: path.write_text("[]"), "not the manifest of a crop cache"),
        (MANIFEST, _say(version=2), "version 2, this program reads version 1; choose another folder"),
        (MANIFEST, _say(bytes="many"), "bytes is missing or no int"),
        (MANIFEST, _say(digest="0123"), "made for other faces or crops (digest '0123'"),
        (MANIFEST, _say(margin=0), "made for other faces or crops (margin 0"),
        (MANIFEST, _say(reach=1.5), "made for crops of up to 1.5 padded sides, wanted 1.768"),
        (MANIFEST, _say(reach=float("nan")), "made for crops of up to nan padded sides"),
    ],
)
def test_a_cache_that_cannot_be_trusted_is_refused_in_a_sentence(
    face_set: Path, made: Path, name: str, harm: Callable[[Path], None], sentence: str
) -> None:
    faces = load_wflw(face_set, "train")
    harm(made / name)
    with pytest.raises(InputError) as caught:
        open_cache(made, faces, REACH)
    assert sentence in str(caught.value)
    assert str(made) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cache_of_pictures_that_were_replaced_is_refused(tmp_path: Path) -> None:
    write_face_set(tmp_path / "set", train=3, test=1)
    faces = load_wflw(tmp_path / "set", "train")
    open_or_build(tmp_path / "caches", faces, REACH, "decoding")
    Image.fromarray(np.array(read_image(faces.image[1]))[::-1]).save(faces.image[1], quality=60)
    with pytest.raises(InputError, match="made from pictures of other names or sizes than those at hand; remove "):
        open_or_build(tmp_path / "caches", faces, REACH, "decoding")


def test_a_finished_cache_is_used_where_nobody_can_write(face_set: Path, made: Path) -> None:
    (made / ".lock").unlink()
    (made / ".lock").mkdir()  # as if it could not be opened for writing: root may write to any file
    assert not build_cache(made, load_wflw(face_set, "train"), REACH, label="decoding")


def test_another_set_has_another_place(face_set: Path, made: Path, tmp_path: Path) -> None:
    train, test = load_wflw(face_set, "train"), load_wflw(face_set, "test")
    with pytest.raises(InputError, match="made for other faces"):
        open_cache(made, test, REACH)
    assert len({cache_folder(tmp_path, faces, reach) for faces in (train, test) for reach in (1.0, REACH)}) == 4


def test_every_bad_picture_is_named_and_no_cache_is_left(tmp_path: Path) -> None:
    write_face_set(tmp_path / "set", train=5, test=1)
    faces = load_wflw(tmp_path / "set", "train")
    faces.image[1].write_bytes(faces.image[1].read_bytes()[:-400])  # its header is whole
    faces.image[3].write_bytes(b"no picture")
    faces.image[4].unlink()
    with pytest.raises(InputError) as caught:
        build_cache(tmp_path / "cache", faces, REACH, label="decoding")
    first, *problems = str(caught.value).splitlines()
    assert first == "decoding: 3 problems"
    for name, problem in zip(("train_1.jpg", "train_3.jpg", "train_4.jpg"), problems, strict=True):
        assert name in problem
    for face in (3, 4):
        faces.image[face].write_bytes(faces.image[2].read_bytes())
    with pytest.raises(InputError, match=r"^\S*train_1\.jpg: not a readable image"):
        build_cache(tmp_path / "cache", faces, REACH, label="decoding")
    with pytest.raises(InputError, match="holds no finished crop cache"):
        open_cache(tmp_path / "cache", faces, REACH)


BUILD = """
import sys, time
from pathlib import Path
import pose.cache
from pose.data.wflw import load_wflw
from pose.regions import training_reach
pose.cache._BATCH = 2
slow = pose.cache.read_image
pose.cache.read_image = lambda path: (time.sleep(float(sys.argv[3])), slow(path))[1]
faces = load_wflw(sys.argv[1], "train")
print("begun", flush=True)
pose.cache.build_cache(Path(sys.argv[2]), faces, training_reach(0.25), label="decoding", workers=2)
"""


def builder(root: Path, folder: Path, delay: float) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", BUILD, str(root), str(folder), str(delay)]
    process = subprocess.Popen(line, cwd=REPOSITORY, env=shell_environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_build_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    face_set: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces, folder, moments = load_wflw(face_set, "train"), tmp_path / "killed", random.Random(0)
    safe = 0
    for _ in range(4):
        process = builder(face_set, folder, delay=0.3)
        time.sleep(moments.uniform(0.2, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / MANIFEST).exists()
        with pytest.raises(InputError, match="holds no finished crop cache"):
            open_cache(folder, faces, REACH)
        assert len(noted(folder)) >= safe  # nothing that was safe is begun anew
        safe = len(noted(folder))
    decoded = decodes(monkeypatch)
    build_cache(folder, faces, REACH, label="decoding")
    assert contents(folder) == contents(made)
    assert len(decoded) == 12 - safe


def noted(folder: Path) -> set[int]:
    """The pictures that the journal says are safe."""
    lines = (folder / JOURNAL).read_text().splitlines() if (folder / JOURNAL).exists() else []
    return {picture for line in lines[1:] for picture, _ in json.loads(line)}


def decodes(monkeypatch: pytest.MonkeyPatch, room: int = 12) -> list[str]:
    """The names of the pictures that builds decode from now on; the disk is full when they were more than `room`."""
    names: list[str] = []

    def read(path: Path) -> np.ndarray:
        if len(names) == room:
            raise OSError(errno.ENOSPC, "No space left on device")
        names.append(path.name)
        return read_image(path)

    monkeypatch.setattr("pose.cache.read_image", read)
    return names


def test_what_a_crash_left_half_written_or_damaged_is_decoded_again_and_the_rest_is_not(
    face_set: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces, folder = load_wflw(face_set, "train"), tmp_path / "crashed"
    monkeypatch.setattr("pose.cache._BATCH", 2)
    for room, safe in ((4, 4), (4, 8)):
        decodes(monkeypatch, room)
        with pytest.raises(InputError, match="No space left on device"):
            build_cache(folder, faces, REACH, label="decoding", workers=1)
        assert len(noted(folder)) == safe
        with (folder / JOURNAL).open("a") as journal:
            journal.write('[[9, "')
    with (folder / PIXELS).open("r+b") as pixels:  # the first picture's
        byte = pixels.read(1)[0]
        pixels.seek(0)
        pixels.write(bytes([byte ^ 1]))
    decoded = decodes(monkeypatch)
    build_cache(folder, faces, REACH, label="decoding", workers=1)
    assert decoded == [faces.image[face].name for face in (0, 8, 9, 10, 11)]
    assert contents(folder) == contents(made)


def test_a_journal_of_other_pictures_is_not_believed(tmp_path: Path, made: Path, face_set: Path) -> None:
    shutil.copytree(face_set, tmp_path / "set")
    faces, folder = load_wflw(tmp_path / "set", "train"), tmp_path / "other"
    process = builder(tmp_path / "set", folder, delay=0.1)
    deadline = time.monotonic() + 30
    while not (folder / JOURNAL).exists() or (folder / JOURNAL).read_text().count("\n") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    turned = np.array(read_image(faces.image[0]))[::-1]
    Image.fromarray(turned).save(faces.image[0], quality=70)
    assert build_cache(folder, faces, REACH, label="decoding")
    assert same(open_cache(folder, faces, REACH), ragged(decode_all(faces, REACH, "decoding")))
    assert contents(folder)[0] != contents(made)[0]


def test_of_two_builders_the_second_waits_and_finds_it_made(face_set: Path, made: Path, tmp_path: Path) -> None:
    both = [builder(face_set, tmp_path / "both", delay=0.05) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert contents(tmp_path / "both") == contents(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_is_one_sentence_and_leaves_no_cache(face_set: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(InputError, match=r"cannot write the crop cache .*: No space left on device"):
            build_cache(small / "cache", load_wflw(face_set, "train"), REACH, label="decoding")
        assert not (small / "cache" / MANIFEST).exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_that_cannot_be_made_is_one_sentence(face_set: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^cannot write the crop cache \S*file/cache: Not a directory$"):
        build_cache(tmp_path / "file" / "cache", load_wflw(face_set, "train"), REACH, label="decoding")


def test_pixels_that_a_gpu_has_no_room_for_stay_in_the_map_and_travel_batch_by_batch(
    face_set: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_cache(made, load_wflw(face_set, "train"), REACH)
    free = 2 * images.pixels.numel() - 1
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 10 * free))
    with pytest.warns(UserWarning, match="too many for the GPU") as said:
        loader = MemoryLoader(images, 3, torch.device("cuda"), mapped=True)
    assert f"{images.pixels.numel() / 1e9:.2f} GB" in str(said[0].message)
    assert str(said[0].message).endswith("they stay in the memory map")
    assert not loader.resident
    assert loader.images.pixels.data_ptr() == images.pixels.data_ptr()
    (batch,) = loader.batches([np.array([7, 2])])
    assert batch.index.tolist() == [0, 1]
    for face, at in ((7, 0), (2, 1)):
        assert torch.equal(batch.images.origin[at], images.origin[face])
        count = int(3 * images.height[face] * images.width[face])
        there, here = int(images.offset[face]), int(batch.images.offset[at])
        assert torch.equal(batch.images.pixels[here : here + count], images.pixels[there : there + count])
    assert len(batch.images.pixels) == sum(int(3 * images.height[face] * images.width[face]) for face in (7, 2))


def test_half_of_a_gpus_free_memory_is_left_to_training() -> None:
    assert fits(5, 10)
    assert not fits(6, 10)
