"""Launcher of a server: drops root, requests a signal at the host's death, and executes it.

Run as a script, never imported by the host. A process of its own rather than `preexec_fn`, which
would run Python between fork and exec of a host that has threads, and may deadlock there (source:
Python's `subprocess` documentation). Started with `-I -S`, and importing nothing but the standard
library, it costs about 20 ms.

Its first argument is the JSON object of `processes.launch_command`, the others are the program.
"""

import ctypes
import json
import os
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_VERSION_3 = 0x20080522


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def _become(libc: ctypes.CDLL, user: int, group: int, capability: int | None) -> None:
    """Change the user; keep one capability, if asked to, across the coming exec.

    Only an ambient capability survives the exec of an ordinary program (source: capabilities(7)).
    The secure bit lets capabilities outlive the change of user, and count in access(2), with which
    PostgreSQL looks for its own files (source: `access_override_creds` in Linux's fs/open.c).
    """
    if capability is not None:
        bits = _SECBIT_NO_SETUID_FIXUP
        _check(libc.prctl(_PR_SET_SECUREBITS, bits, 0, 0, 0), "prctl(PR_SET_SECUREBITS)")
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    if capability is not None:
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        bit = 1 << capability
        sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
        _check(libc.capset(header, sets), "capset")
        _check(
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0),
            "prctl(PR_CAP_AMBIENT)",
        )


def main(arguments: list[str]) -> None:
    """Execute the program; does not return."""
    launch = json.loads(arguments[0])
    program = arguments[1:]
    # A session of its own: Ctrl-C on a terminal reaches only the host, which drains and then stops
    # this server.
    os.setsid()
    os.umask(0o077)
    libc = ctypes.CDLL(None, use_errno=True)
    if launch["user"] is not None:
        _become(libc, launch["user"], launch["group"], launch["capability"])
    if sys.platform == "linux":
        # Last, because a change of user clears it (source: prctl(2)).
        _check(libc.prctl(_PR_SET_PDEATHSIG, launch["signal"], 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != launch["parent"]:
            sys.exit("the host ended while its server was being started")
    os.execv(program[0], program)  # noqa: S606 - the program is ours, and no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
