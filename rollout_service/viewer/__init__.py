"""The viewer: one HTML file that shows stored trajectories, with no server and no network.

What belongs here: what the page holds of each trajectory, the file's layout, and the page itself, which is plain
JavaScript modules in `app/` and CSS in `style/`. What does not: numbers over many trajectories, which
`rollout_service.report` computes, and reading files, which `rollout_service.record` does.
"""
