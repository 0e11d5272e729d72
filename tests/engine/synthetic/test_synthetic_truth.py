"""The truth of a rendered view against the meshes it was rendered from, and against the colours."""

import cv2
import numpy as np
import open3d as o3d
import pytest

from engine.geometry import camera as geometry
from engine.synthetic import make_world, render
from engine.synthetic.figure import pose_figure
from engine.synthetic.mesh import yaw_pose


def world_points(view, t):
    points = geometry.unproject_depth(view.K[t], view.depth[t].astype(np.float64))
    return geometry.transform(view.c2w[t], points)


def distance_to(mesh, points):
    """Distance in float64 to the plane of the nearest triangle; the nearest triangle is Open3D's, in float32."""
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    nearest = scene.compute_closest_points(points.astype(np.float32))
    assert np.abs(nearest["points"].numpy() - points).max() < 0.05
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces[nearest["primitive_ids"].numpy()]], 1, 0)
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return np.abs(np.einsum("pc,pc->p", normal, points - a))


def posed(view, agent, t):
    a = view.world.agents[agent]
    x, z = a.motion.ground[t]
    return pose_figure(a.figure, yaw_pose(a.motion.heading[t], (x, 0, z)), a.motion.phase[t], a.motion.effort[t])


@pytest.mark.parametrize("t", [0, 16])
def test_every_pixel_lies_on_the_surface_that_it_shows(walk, t):
    """K, c2w, depth and labels together: what unprojects from a pixel is on the mesh, to float precision."""
    points, depth, labels = world_points(walk, t), walk.depth[t], walk.labels[t]
    still = (labels == 0) & (depth > 0)
    error = distance_to(walk.world.scenery.mesh, points[still]) / depth[still]
    assert still.mean() > 0.7
    assert np.quantile(error, 0.999) < 1e-6
    assert error.max() < 1e-4  # where Open3D's float32 picks a neighbour of the nearest triangle
    for n, agent in enumerate(walk.figures, 1):
        mine = labels == n
        assert mine.any()
        assert distance_to(posed(walk, agent, t)[0], points[mine]).max() < 5e-6


def test_depth_of_one_frame_explains_another(walk):
    """Static points of frame 0 seen from frame 16: nothing is nearer than what frame 16 saw, except the figures'
    places, and most points are the very surface."""
    points, still = world_points(walk, 0), (walk.labels[0] == 0) & (walk.depth[0] > 0)
    centre = walk.c2w[16, :3, 3]
    scene = o3d.t.geometry.RaycastingScene()
    mesh = walk.world.scenery.mesh
    scene.add_triangles(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    way = points[still] - centre
    rays = np.concatenate([np.broadcast_to(centre, way.shape), way], 1).astype(np.float32)
    hit = scene.cast_rays(rays)["t_hit"].numpy()  # 1 where the point itself is hit first
    assert hit.max() < 1 + 1e-4
    assert (np.abs(hit - 1) < 1e-4).mean() > 0.8


def test_a_figure_is_in_front_of_what_it_hides(walk):
    alone = render(make_world("street", "walk", agents=1, seed=1, frames=1, height=120, width=208))
    # With nobody to look at the camera aims elsewhere: cast the first camera's rays at the scenery alone instead.
    assert (alone.labels == 0).all()
    scene = o3d.t.geometry.RaycastingScene()
    mesh = walk.world.scenery.mesh
    scene.add_triangles(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    way = geometry.rays(walk.K[0], geometry.pixel_grid(120, 208).astype(np.float64)) @ walk.c2w[0, :3, :3].T
    rays = np.concatenate([np.broadcast_to(walk.c2w[0, :3, 3], way.shape), way], -1).astype(np.float32)
    behind = scene.cast_rays(rays)["t_hit"].numpy()
    someone = walk.labels[0] > 0
    assert (walk.depth[0][someone] < behind[someone]).all()
    np.testing.assert_allclose(walk.depth[0][~someone], np.where(np.isfinite(behind), behind, 0)[~someone], rtol=1e-5)


def test_colours_follow_the_geometry(walk):
    """Frame 8 warped by the true depth and poses looks like frame 0; a shift of half a pixel makes it worse, so pixel
    centres lie at +0.5."""
    a, b = 0, 8
    camera = geometry.transform(geometry.invert(walk.c2w[b]), world_points(walk, a))
    uv, z = geometry.project(walk.K[b], camera)
    inside = (uv[..., 0] > 2) & (uv[..., 0] < 206) & (uv[..., 1] > 2) & (uv[..., 1] < 118) & (walk.labels[a] == 0)

    def error(shift):
        # cv2.remap has pixel centres at whole numbers
        at = (uv - 0.5 + shift).astype(np.float32)
        warped = cv2.remap(walk.frames[b], at[..., 0], at[..., 1], cv2.INTER_LINEAR).astype(float)
        seen = cv2.remap(walk.depth[b], at[..., 0], at[..., 1], cv2.INTER_NEAREST)
        same = inside & (np.abs(seen - z) < 0.01 * z)
        assert same.mean() > 0.3
        return np.median(np.abs(warped - walk.frames[a])[same])

    right = error(0.0)
    assert right < 4
    assert all(error(np.array(s)) > 1.3 * right for s in ([0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]))


def test_the_root_projects_into_the_mask_and_the_centroid_is_the_masks(walk):
    H, W = walk.labels.shape[1:]
    inside = []
    for n in range(len(walk.figures)):
        for t in range(walk.world.frames):
            w2c = geometry.invert(walk.c2w[t])
            (u, v), z = geometry.project(walk.K[t], geometry.transform(w2c, walk.root[n, t]))
            assert z > 0
            assert 0 <= u < W
            assert 0 <= v < H
            inside.append(walk.labels[t, int(v), int(u)] == n + 1)
            points = world_points(walk, t)[walk.labels[t] == n + 1]
            np.testing.assert_allclose(walk.centroid[n, t], points.mean(0), atol=1e-5)
            # The visible surface is the front of a body: within half a metre of its middle.
            assert np.linalg.norm(walk.centroid[n, t] - walk.root[n, t]) < 0.5
    assert np.mean(inside) > 0.95


def test_two_agents_see_one_world():
    size = {"frames": 2, "height": 60, "width": 104}
    world = make_world("street", "walk", seed=3, face_to_face=True, **size)
    a, b = render(world, 0), render(world, 1)
    assert a.figures == (1, 2)
    assert b.figures == (0, 2)
    np.testing.assert_array_equal(a.root[1], b.root[1])  # agent 2, seen by both
    assert (b.labels == 1).any()  # agent 1 films agent 0
    forward = np.stack([np.sin(a.heading[0]), np.zeros(2), np.cos(a.heading[0])], -1)
    to_camera = a.c2w[:, :3, 3] - a.root[0]
    assert (np.einsum("tc,tc->t", forward, to_camera) > 0).all()  # face to face
    with pytest.raises(ValueError, match="agent 3"):
        render(world, 3)
