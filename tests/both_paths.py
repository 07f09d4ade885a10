"""The tests of tunnels/ and interop/ run on the kernel path and again on the userspace path. Here
stands which do not; test_both_paths.py sees to it that nothing else is left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

Path = Literal["kernel", "userspace"]

DIRECTORIES = ("tunnels", "interop")

MODE_PARAMETERS = frozenset({"mode", "modes", "seal"})
"""How the kernel path is attached: the userspace path needs one of their values alone."""

_PINS = "reads or breaks what is pinned"
_PROGRAMS = "about the programs on devices"
_ALONE = "what the programs do without a daemon"
_KILLED = "sessions that live in the daemon are gone when it is killed"
_NO_PATH = "nothing is moved"
_SOAK = "tools/soak is told the path"

KERNEL_ALONE = {
    "tunnels/test_damage.py": _PROGRAMS,
    "tunnels/test_foreign.py": _PROGRAMS,
    "tunnels/test_interrupted.py::test_a_name_with_a_dot": _PINS,
    "tunnels/test_interrupted.py::test_a_port_of_a_dispatcher": _PINS,
    "tunnels/test_interrupted.py::test_a_removal": _PINS,
    "tunnels/test_interrupted.py::test_a_start_beside_an_older_generation": _PINS,
    "tunnels/test_light_traffic.py": _PROGRAMS,
    "tunnels/test_losses.py::test_a_device_that_is_gone_has_no_queue": _NO_PATH,
    "tunnels/test_losses.py::test_the_choice_of_a_datapath_survives_a_restart": (
        "in test_userspace.py too"
    ),
    "tunnels/test_losses.py::test_lost_in_segmenter": _PROGRAMS,
    "tunnels/test_losses.py::test_sockets_on_another_port_lost_nothing_yet": "chooses userspace",
    "tunnels/test_modes.py::test_auto_takes_native_first": _PROGRAMS,
    "tunnels/test_modes.py::test_nodes_of_different_modes": _PROGRAMS,
    "tunnels/test_pinned.py::test_maps_show_fields_by_name_and_keys_in_one_place_only": _PINS,
    "tunnels/test_replay_window.py": _PINS,
    "tunnels/test_restart.py::test_a_changed_configuration[AttachMode = auto]": _PROGRAMS,
    "tunnels/test_restart.py::test_a_changed_configuration[AttachMode = generic]": _PROGRAMS,
    "tunnels/test_restart.py::test_a_changed_configuration[AttachMode = tc]": _PROGRAMS,
    "tunnels/test_restart.py::test_a_changed_configuration[kill_and_up]": _KILLED,
    "tunnels/test_restart.py::test_a_file_with_an_error_changes_nothing[kill_and_up]": _KILLED,
    "tunnels/test_restart.py::test_a_new_generation_that_dies_before_it_has_sessions": _PINS,
    "tunnels/test_restart.py::test_a_start_that_fails_leaves_what_was_there": _ALONE,
    "tunnels/test_restart.py::test_an_upgrade_from_the_programs_before_these": _PROGRAMS,
    "tunnels/test_restart.py::test_an_upgrade_to_another_layout": _PROGRAMS,
    "tunnels/test_restart.py::test_another_port[kill_and_up]": _KILLED,
    "tunnels/test_restart.py::test_no_packet_is_lost[kill_and_up]": _KILLED,
    "tunnels/test_restart.py::test_other_programs_take_the_place_of_the_old_ones": _PROGRAMS,
    "tunnels/test_restart.py::test_peers_come_and_go[kill_and_up]": _KILLED,
    "tunnels/test_roaming.py::test_roaming_needs_no_daemon": _ALONE,
    "tunnels/test_routes.py::test_the_default_route_through_the_tunnel_does_not_catch_the_tunnel"
    "[strict]": "only programs can mark what comes, which the filter asks for; there is a warning",
    "tunnels/test_several_ports.py::test_one_receive_queue_is_shared": _PROGRAMS,
    "tunnels/test_soak_cases.py": _SOAK,
    "tunnels/test_spread.py": _PROGRAMS,
    "tunnels/test_steps.py": _PROGRAMS,
    "tunnels/test_supervisor.py": _KILLED,
    "tunnels/test_underlay_changes.py::test_the_attach_mode_is_shared_by_two_tunnels": _PROGRAMS,
    "tunnels/test_up_down.py::test_a_file_with_an_error": _NO_PATH,
    "tunnels/test_up_down.py::test_down_without_up": _NO_PATH,
    "tunnels/test_without_daemon.py": _ALONE,
}
"""By file, or file and function, or these and the id of a parameter, the reason."""

USERSPACE_ALONE = {
    "tunnels/test_routes.py::test_a_filter_that_lets_no_answer_through_is_told": (
        "what programs cure, see above"
    ),
    "tunnels/test_userspace.py": "privileges, kernels and starts without BPF",
}
"""These choose the path themselves."""

_HANDSHAKES = "handshakes alone, 6 s each"

ONCE = {
    "interop/test_wireguard_go.py::test_unknown_key": _HANDSHAKES,
    "interop/test_wireguard_go.py::test_wrong_preshared_key": _HANDSHAKES,
    "tunnels/test_first_packets.py::test_nobody_there_is_unreachable": "what waits has no path",
    "tunnels/test_restart.py::test_another_key_is_another_tunnel": "either way a new tunnel",
    "tunnels/test_routes.py::test_the_table_of_the_routes": "routes alone",
}
"""In userspace with the first of their parameters alone, and why."""

_chosen: Path = "kernel"


def of(test: str) -> tuple[Path, ...]:
    """Those that "tunnels/test_x.py::test_y" is run on; none: on the kernel path alone, or it
    chooses itself."""
    file, _, _ = test.partition("::")
    if test.partition("/")[0] not in DIRECTORIES:
        return ()
    if {test, file} & (KERNEL_ALONE.keys() | USERSPACE_ALONE.keys()):
        return ()
    return "kernel", "userspace"


def different(test: str, parameters: Mapping[str, object], ids: Iterable[str]) -> object:
    """What `test` is in userspace: one of several that are the same is run. None: it is none."""
    if any(f"{test}[{each}]" in KERNEL_ALONE for each in ids):
        return None
    if test in ONCE:
        return test
    return test, [(k, repr(v)) for k, v in parameters.items() if k not in MODE_PARAMETERS]


def in_userspace() -> bool:
    """Whether the test that runs is on the userspace path."""
    return _chosen == "userspace"


@contextlib.contextmanager
def on(path: Path) -> Iterator[None]:
    """The files that nodes write meanwhile are for it."""
    global _chosen
    before, _chosen = _chosen, path
    try:
        yield
    finally:
        _chosen = before
