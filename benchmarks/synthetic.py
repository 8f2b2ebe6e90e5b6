"""A set of tiny synthetic images of any size, packed in a process of its own."""

from __future__ import annotations

from pathlib import Path

from benchmarks.processes import number_printed_by

PACK = """
    import sys
    import numpy as np
    from egal_shards import pack
    from egal_shards.records import Raw, Record, Source

    folder, samples, classes = sys.argv[1], int(sys.argv[2]), sys.argv[3]

    class Records:
        def __len__(self):
            return samples
        def __getitem__(self, i):
            image = np.full((8, 8), i % 251, np.uint8)
            image[i % 8] = 255 - i % 7
            label = classes[i // 2 % len(classes)] if classes else ""
            return Record(f"s{i:07d}", label, f"g{i}", f"{i}", lambda: Raw(image, image > 250))
        def __iter__(self):
            return (self[i] for i in range(len(self)))

    pack(Source("synthetic", tuple(classes), Records(), {}), folder, size=8, shard_mb=10, progress=False)
    print(0)
"""


def synthetic_set(folder: Path, samples: int, classes: str = "") -> Path:
    """Return `folder`, into which a set of images of 8² pixels is packed unless it is there.

    Args:
        folder: the shard set.
        samples: number of images.
        classes: one letter per class; "" packs a set without labels.
    """
    if not folder.is_dir():
        number_printed_by(PACK, folder, samples, classes)
    return folder
