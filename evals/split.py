"""The two halves of a suite: on one confidences are calibrated, on the other they are certified."""

import hashlib


def calibration_half(group: str) -> bool:
    """Return whether a group of examples belongs to the calibration half.

    By hash of its name: the same in every run, whatever the order, and whatever is added.
    """
    return hashlib.sha256(f"narrowgate-half:{group}".encode()).digest()[0] % 2 == 0
