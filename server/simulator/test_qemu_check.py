#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""A second judge: what runs leave behind goes to `qemu-img check`. At most leaks."""

import os
import shutil
import subprocess
import sys
import tempfile

SEEDS = "2001:80"
SKIPPED = 77
CLEAN, LEAKS = 0, 3


def main():
    if not shutil.which("qemu-img"):
        print("no qemu-img here")
        return SKIPPED
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.argv[1], "--seeds", SEEDS, "--dump", directory], check=True)
        failed = 0
        for seed in sorted(os.listdir(directory), key=int):
            for name in sorted(os.listdir(os.path.join(directory, seed))):
                if not name.endswith(".qcow2"):
                    continue
                with open(os.path.join(directory, seed, name), "rb") as image:
                    encrypted = image.read(36)[32:] == b"\0\0\0\2"
                what = ["--object", "secret,id=key,data=seed", "--image-opts",
                        f"driver=qcow2,file.filename={name},encrypt.key-secret=key"] if encrypted else [name]
                result = subprocess.run(["qemu-img", "check", *what], text=True,
                                        cwd=os.path.join(directory, seed),
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        check=False)
                if result.returncode not in (CLEAN, LEAKS):
                    failed += 1
                    print(f"seed {seed}, {name}: qemu-img check says {result.returncode}")
                    print(result.stdout)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
