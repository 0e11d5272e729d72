"""The embedded Tracker: people by BlazePose, followed over the clip, with what moves along with them."""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.options import option
from engine.perception.embedded.body import measure_body
from engine.perception.embedded.bridge import bridge_gaps
from engine.perception.embedded.flow import neighbour_flow, shrink
from engine.perception.embedded.focal import FocalOptions, prior_intrinsics
from engine.perception.embedded.masks import paint_labels
from engine.perception.embedded.moving import MovingOptions, find_moving
from engine.perception.embedded.people import PeopleFinder, PeopleOptions, Person
from engine.perception.embedded.pose import PoseNet
from engine.perception.embedded.scale import ScaleOptions
from engine.perception.embedded.skeleton import limb_distance, limb_fit
from engine.types import Clip, SubjectTrack, Tracks

FLOW_FACTOR = 2  # flow and motion at half size: 3 s of CPU for 81 frames of 480x832


@dataclass
class EmbeddedTrackerOptions:
    people: PeopleOptions = option(PeopleOptions(), "finding and following people")
    moving: MovingOptions = option(
        MovingOptions(), "residual motion: what people carry or ride, and other moving things"
    )
    focal: FocalOptions = option(FocalOptions(), "focal length where neither user nor metadata gives one")
    scale: ScaleOptions = option(ScaleOptions(), "metres from people")
    gap_seconds: float = option(
        0.25, "somebody lost for at most this long is carried over the gap by optical flow, seconds; 0 = never"
    )


class EmbeddedTracker:
    """People of a clip with networks that come in wheels. One instance per worker; deterministic."""

    def __init__(self, options: EmbeddedTrackerOptions) -> None:
        self.options = options
        self.net = PoseNet()

    def track(self, clip: Clip) -> Tracks:
        """Labelled masks, dynamic pixels, and per subject its score, torso direction and metric distance.

        Distances use the clip's K, or the prior focal length where it has none.
        """
        gray = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in shrink(clip.frames, FLOW_FACTOR)])
        flows = neighbour_flow(gray)
        finder = PeopleFinder(self.net, clip.frames, flows, FLOW_FACTOR, self.options.people, clip.fps)
        people, passing = finder.find()
        chosen = people[: self.options.people.max_subjects]
        labels, others = paint_labels([*people, *passing], clip.frames, len(chosen))
        most = round(self.options.gap_seconds * clip.fps)
        labels = bridge_gaps(labels, clip.frames, flows, most, self.options.people.link_appearance)
        labels, dynamic = find_moving(labels, others, gray, flows, self.options.moving)
        K, _ = prior_intrinsics(clip, self.options.focal)
        subjects = tuple(self._subject(i + 1, person, K, labels) for i, person in enumerate(chosen))
        return Tracks(labels, dynamic, subjects, dict(self.net.models))

    def _subject(self, label: int, person: Person, K: np.ndarray, labels: np.ndarray) -> SubjectTrack:
        """A frame's score is the network's times how well the mask fits the skeleton: a mask that took in somebody
        else makes no good picture."""
        count, height, width = labels.shape
        score = np.zeros(count, np.float32)
        facing = np.full((count, 3), np.nan, np.float32)
        distance = np.full(count, np.nan, np.float32)
        for t, body in person.bodies.items():
            mask = (labels[t] == label).astype(np.uint8)
            x, y, w, h = cv2.boundingRect(mask)
            if w:
                where = (slice(y, y + h), slice(x, x + w))
                score[t] = body.presence * limb_fit(mask[where] > 0, limb_distance(body, where))
            metric = measure_body(body, K, (height, width), self.options.scale.stature)
            if metric is not None:
                facing[t], distance[t] = metric.facing, metric.distance
        return SubjectTrack(label, "person", score, facing, distance)
