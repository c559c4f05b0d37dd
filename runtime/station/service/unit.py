"""The unit of a station for systemd: how it is started, supervised and confined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# In it, systemd makes a folder for a service, which belongs to the user of the service.
STATE = Path("/var/lib")
STATION_FILE = "station.json"
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))

# systemd 245 of Ubuntu 20.04 knows every line. Left out on purpose: ProtectClock= and
# PrivateDevices=, which hide cameras and GPUs, and MemoryDenyWriteExecute=, since engines compile
# code at run time.
TEMPLATE = """\
[Unit]
Description=Flawline inspection station
Wants=network-online.target
After=network-online.target time-sync.target
# It is started again for ever.
StartLimitIntervalSec=0

[Service]
# Ready when the engine has passed its self-test and the frames are awaited.
Type=notify
NotifyAccess=main
ExecStart={start}
{environment}
Restart=always
RestartSec=2
# A first start may compile a plan for the GPU.
TimeoutStartSec=30min
TimeoutStopSec=20
# Teaching from the live page may take too much memory; it is ended, and the stream is not.
OOMPolicy=continue
# Without a sign of life for so long, it is ended and started again; its log says what it did.
WatchdogSec=30

User={user}
Group={user}
{groups}
UMask=0027
# Its station file, bundles, plans, results and audit log are in {folder}; all else is read-only.
StateDirectory={name}
StateDirectoryMode=0750
WorkingDirectory={folder}
LimitNOFILE=65536
# MemoryMax=4G

NoNewPrivileges=yes
CapabilityBoundingSet=
# For ports below 1024, such as that of Modbus:
# CapabilityBoundingSet=CAP_NET_BIND_SERVICE
# AmbientCapabilities=CAP_NET_BIND_SERVICE
ProtectSystem=strict
ProtectHome={home}
PrivateTmp={temporary}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Service:
    """What a unit is made of.

    `name` is that of the service, `program` the words of the command `flawline`, and `reads` the
    files that they read, which may be in a home. `groups` are those that own cameras.
    """

    name: str
    user: str
    program: Sequence[str | Path]
    reads: Sequence[Path]
    groups: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of the service, with everything that it writes."""
        return STATE / self.name

    def unit(self) -> str:
        """Return the text of the unit."""
        variables = {"PYTHONUNBUFFERED": "1", **self.environment}
        lines = [f"Environment={_quoted(f'{key}={value}')}" for key, value in variables.items()]
        groups = f"SupplementaryGroups={' '.join(self.groups)}"
        command = [*self.program, "stream", "--station", self.folder / STATION_FILE]
        return TEMPLATE.format(
            start=" ".join(_quoted(str(word)) for word in command),
            environment="\n".join(lines),
            user=self.user,
            groups=groups if self.groups else "# No group of cameras was found.",
            folder=self.folder,
            name=self.name,
            home="read-only" if self._reads_below(HOMES) else "yes",
            temporary="no" if self._reads_below(TEMPORARY) else "yes",
        )

    def _reads_below(self, folders: Sequence[Path]) -> bool:
        paths = [*self.reads, *(path.resolve() for path in self.reads)]
        return any(path.is_relative_to(folder) for path in paths for folder in folders)


def _quoted(word: str) -> str:
    """Return a word as systemd reads it: specifiers, variables and quotes have no meaning."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    if escaped == word and not any(character.isspace() or character in "';#" for character in word):
        return word
    return f'"{escaped}"'
