"""All benchmarks of the core, one after the other; a set that cannot be fetched is skipped.

    python -m tests.benchmarks.core [--short]

In full about five hours on two cores; --short, a few minutes, one epoch of those that train.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.benchmarks.core.data import Unavailable, cifar10, fashion_mnist, mnist

# Module, arguments, the data it needs.
RUNS = [
    ("bench_gradient_variance", "", ()),
    ("bench_mnist_bound", "--model vae", (mnist,)),
    ("bench_mnist_bound", "--model iwae5", (mnist,)),
    (
        "bench_mnist_bound",
        "--model vae --epochs 700 --glorot --name mnist-bound-vae-long",
        (mnist,),
    ),
    ("bench_one_class", "--data mnist", (mnist,)),
    ("bench_one_class", "--data fashion-mnist", (fashion_mnist,)),
    ("bench_paradox", "", (mnist, fashion_mnist)),
    ("bench_cifar_bits", "", (cifar10,)),
    ("pictures", "", ()),
]
# What --short adds; a module that is not named does not run.
SHORT = {
    "bench_mnist_bound": "--epochs 1 --samples 100 --test-images 500",
    "bench_one_class": "--seeds 1 --epochs 1",
    "bench_paradox": "--epochs 1",
    "bench_cifar_bits": "--epochs 1 --train-images 2000 --test-images 200",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    for module, full, needs in RUNS:
        if short and module not in SHORT:
            continue
        arguments = f"{full} {SHORT[module] if short else ''}".split()
        sys.stdout.write(f"\n{module} {' '.join(arguments)}\n")
        try:
            for fetch in needs:
                fetch()
        except Unavailable as error:
            sys.stdout.write(f"skipped: {error}\n")
            continue
        command = [sys.executable, "-m", f"tests.benchmarks.core.{module}", *arguments]
        # Short runs write into a folder of their own, and leave what hours have found.
        extra = {"LATENTLAKE_BENCH_SHORT": "1"} if short else {}
        subprocess.run(command, check=True, env=os.environ | extra)


if __name__ == "__main__":
    main()
