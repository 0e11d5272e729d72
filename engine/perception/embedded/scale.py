"""Metres: how the size of people scales the scene."""

from dataclasses import dataclass

from engine.options import option


@dataclass
class ScaleOptions:
    stature: float = option(
        1.70,
        "assumed height of a person, metres (NCD-RisC 2016, adults: 1.59 women and 1.71 men worldwide, about 1.66 and "
        "1.80 in northern Europe)",
    )
    stature_sigma: float = option(
        0.06,
        "standard deviation of the log stature of an unknown adult (4 % within a sex, 4 % between sexes and countries)",
    )
    camera_height: float = option(
        1.5,
        "height of the camera above the ground where no person gives a scale, metres (hand-held, chest to eye)",
    )
    camera_height_sigma: float = option(0.25, "standard deviation of the log camera height")
    median_depth: float = option(
        6.0, "median depth of the scene where neither people nor a ground plane give a scale, metres"
    )
    median_depth_sigma: float = option(0.6, "standard deviation of the log median depth")
