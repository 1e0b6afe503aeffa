"""Network settings: offline mode, hub, proxies and telemetry, read from the environment; reaches no network."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from skillgraft.doctor.findings import Finding

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy")
TELEMETRY = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
"""The variables that turn the hub client's telemetry off."""

_TRUE = {"1", "ON", "YES", "TRUE"}


def check_network(environ: Mapping[str, str]) -> list[Finding]:
    """Say whether hub ids can be looked up, and through what."""
    findings = []
    offline = [name for name in OFFLINE if _on(environ, name)]
    if offline:
        text = f"offline: {', '.join(f'{name}={environ[name]}' for name in offline)}"
        meaning = "a hub id that is not in the hub cache is refused; the default model comes from the package registry"
        findings.append(
            Finding("network", "note", text, meaning, f"unset {' '.join(offline)}, to fetch models of a hub")
        )
    else:
        endpoint = environ.get("HF_ENDPOINT")
        where = f"; HF_ENDPOINT={without_password(endpoint)}" if endpoint else ""
        meaning = "a recipe's hub id is looked up there when it is not in the cache; directories never are"
        findings.append(Finding("network", "ok", f"hub lookups are allowed{where}", meaning))
    proxies = [f"{name}={without_password(environ[name])}" for name in PROXIES if environ.get(name)]
    if proxies:
        findings.append(Finding("network", "note", ", ".join(proxies), "downloads go through this proxy"))
    return findings


def check_telemetry(environ: Mapping[str, str]) -> list[Finding]:
    """Say whether the hub's client reports its use."""
    if any(_on(environ, name) for name in TELEMETRY):
        return [Finding("telemetry", "ok", "off", "nothing reports your use; trainers log to your disk alone")]
    setting = f"HF_HUB_DISABLE_TELEMETRY={environ.get('HF_HUB_DISABLE_TELEMETRY', '')}"
    meaning = "the hub's client may say which libraries you use when it downloads"
    return [Finding("telemetry", "note", f"on: {setting}", meaning, "export HF_HUB_DISABLE_TELEMETRY=1")]


def without_password(url: str) -> str:
    """Return a URL without user name and password, which must not end up in a bug report."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(not a URL)"
    return f"{parts.scheme + '://' if parts.scheme else ''}{parts.hostname or ''}{port}"


def _on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").upper() in _TRUE
