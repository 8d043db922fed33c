"""How the tools of public MCP servers and agent frameworks are read: refused, noted, rendered, given back, and with which meaning.

    python -m benchmarks.check_formats /tmp/formats                      # all: installs from npm and PyPI, half an hour, 10 GB
    python -m benchmarks.check_formats /tmp/formats --only mcp-server-git

Linux, npm and Python's venv are needed. A server is started without a network, asked for its tools over stdio, and killed. Its list is
kept in the folder: a second run asks none.
"""

import argparse
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

SERVERS = {  # "package@version": arguments of its command. Those of npm, then those of PyPI
    "npm": {
        "@modelcontextprotocol/server-everything@2026.8.31": "stdio",
        "@modelcontextprotocol/server-filesystem@2026.8.31": ".",
        "@modelcontextprotocol/server-memory@2026.8.31": "",
        "@modelcontextprotocol/server-sequential-thinking@2026.8.31": "",
        "@modelcontextprotocol/server-slack@2025.4.25": "",
        "@modelcontextprotocol/server-github@2025.4.8": "",
        "@modelcontextprotocol/server-gitlab@2025.4.25": "",
        "@modelcontextprotocol/server-google-maps@0.6.2": "",
        "@modelcontextprotocol/server-brave-search@0.6.2": "",
        "@modelcontextprotocol/server-puppeteer@2025.5.12": "",
        "@modelcontextprotocol/server-postgres@0.6.2": "postgresql://localhost/db",
        "@playwright/mcp@0.0.83": "",
        "chrome-devtools-mcp@1.11.0": "",
        "@upstash/context7-mcp@4.1.1": "",
        "@notionhq/notion-mcp-server@2.5.2": "",
        "@circleci/mcp-server-circleci@0.20.0": "",
        "n8n-mcp@2.87.0": "",
        "mongodb-mcp-server@3.0.4": "",
        "tavily-mcp@0.2.22": "",
        "@zereight/mcp-gitlab@2.1.64": "",
        "firecrawl-mcp@3.26.0": "",
        "figma-developer-mcp@0.13.2": "--stdio",
        "@executeautomation/playwright-mcp-server@1.0.12": "",
        "@winor30/mcp-server-datadog@1.8.0": "",
        "@antv/mcp-server-chart@0.9.10": "",
        "@cocal/google-calendar-mcp@2.6.3": "",
        "@hubspot/mcp-server@0.4.0": "",
        "@perplexity-ai/mcp-server@1.2.1": "",
        "@shortcut/mcp@0.25.0": "",
        "@apify/actors-mcp-server@0.16.0": "",
        "@mobilenext/mobile-mcp@1.0.4": "",
        "@currents/mcp@2.1.1": "",
        "@brave/brave-search-mcp-server@2.1.4": "",
        "@larksuiteoapi/lark-mcp@0.5.1": "mcp -a dummy -s dummy",
        "mcp-server-code-runner@0.1.8": "",
        "@aashari/mcp-server-atlassian-jira@3.3.0": "",
        "@browsermcp/mcp@0.1.3": "",
        "exa-mcp-server@3.4.1": "",
        "backlog-mcp-server@0.20.4": "",
        "@benborla29/mcp-server-mysql@2.0.9": "",
        "@shopify/dev-mcp@1.16.0": "",
        "@softeria/ms-365-mcp-server@0.155.0": "",
        "@mondaydotcomorg/monday-api-mcp@3.3.0": "-t dummy",
        "@mapbox/mcp-server@0.14.0": "",
        "argocd-mcp@0.9.0": "stdio",
        "mcp-server-kubernetes@4.1.7": "",
        "mcp-mermaid@0.4.1": "",
        "@amap/amap-maps-mcp-server@0.0.8": "",
        "@openbnb/mcp-server-airbnb@0.3.0": "",
        "@heroku/mcp-server@1.2.8": "",
        "@cyanheads/git-mcp-server@2.15.3": "",
        "@pinecone-database/mcp@0.3.0": "",
        "@postman/postman-mcp-server@2.13.0": "",
        "@line/line-bot-mcp-server@0.5.0": "",
        "@wonderwhy-er/desktop-commander@0.2.52": "",
        "@azure-devops/mcp@2.10.0": "dummy",
        "@sentry/mcp-server@0.39.0": "--access-token=dummy",
        "@atlassian-dc-mcp/jira@0.34.0": "",
        "task-master-ai@0.43.1": "",
    },
    "pypi": {
        "mcp-server-fetch==2026.10.24": "",
        "mcp-server-git==2026.10.19": "",
        "mcp-server-time==2026.10.19": "",
        "mcp-server-sqlite==2025.4.25": "",
        "duckduckgo-mcp-server==0.7.0": "",
        "arxiv-mcp-server==0.8.2": "",
        "mcp-atlassian==0.23.1": "",
        "wikipedia-mcp==2.0.1": "",
        "excel-mcp-server==2.2.2": "stdio",
        "office-word-mcp-server==1.1.11": "",
        "office-powerpoint-mcp-server==2.0.7": "",
        "awslabs.aws-documentation-mcp-server==1.2.3": "",
        "awslabs.dynamodb-mcp-server==2.1.8": "",
        "blender-mcp==2.0.0": "",
        "mcp-server-calculator==0.2.1": "",
        "postgres-mcp==0.3.0": "postgresql://localhost/db",
        "mcp-clickhouse==0.7.0": "",
        "redis-mcp-server==0.5.1": "",
        "mcp-neo4j-cypher==0.6.0": "",
        "yfinance-mcp==0.1.2": "",
    },
}
# Only looked at for being there: no server is asked for more than its tools.
DUMMIES = """ACCESS_TOKEN AMAP_MAPS_API_KEY APIFY_TOKEN ARGOCD_API_TOKEN ATLASSIAN_API_TOKEN BACKLOG_API_KEY BRAVE_API_KEY
CHANNEL_ACCESS_TOKEN CIRCLECI_TOKEN CURRENTS_API_KEY DATADOG_API_KEY DATADOG_APP_KEY EXA_API_KEY FIGMA_API_KEY FIRECRAWL_API_KEY
GITHUB_PERSONAL_ACCESS_TOKEN GITLAB_PERSONAL_ACCESS_TOKEN GOOGLE_MAPS_API_KEY HEROKU_API_KEY JIRA_API_TOKEN NOTION_TOKEN
PERPLEXITY_API_KEY PINECONE_API_KEY POSTMAN_API_KEY PRIVATE_APP_ACCESS_TOKEN SHORTCUT_API_TOKEN SLACK_BOT_TOKEN SLACK_TEAM_ID
TAVILY_API_KEY CLICKHOUSE_USER CLICKHOUSE_PASSWORD JIRA_USERNAME CONFLUENCE_USERNAME CONFLUENCE_API_TOKEN MYSQL_USER MYSQL_PASS
MYSQL_DB""".split()
ENVIRONMENT = dict.fromkeys(DUMMIES, "dummy") | {
    "BACKLOG_DOMAIN": "localhost", "ARGOCD_BASE_URL": "http://localhost", "CLICKHOUSE_HOST": "localhost", "MYSQL_HOST": "localhost",
    "JIRA_URL": "http://localhost", "CONFLUENCE_URL": "http://localhost", "NEO4J_URI": "bolt://localhost",
    "MAPBOX_ACCESS_TOKEN": "pk.eyJ1IjoiZHVtbXkifQ.dummy", "JIRA_API_BASE_PATH": "http://localhost/rest", "JIRA_HOST": "localhost",
    "npm_config_update_notifier": "false", "NO_UPDATE_NOTIFIER": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip
SECONDS = 90  # for an answer of a server


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for what is installed, and the tools that were listed")
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    folder = args.folder.resolve()
    pins = [
        (registry, pin)
        for registry in SERVERS
        for pin in SERVERS[registry]
        if not args.only or any(pin.startswith(o) for o in args.only)
    ]
    for number, (registry, pin) in enumerate(pins, start=1):
        try:
            tools = server_tools(folder, registry, pin)
        except Exception as error:
            print(f"[{number}/{len(pins)}] {pin}: {type(error).__name__}: {str(error)[-600:]}", flush=True)
        else:
            print(f"[{number}/{len(pins)}] {pin}: {len(tools)} tools", flush=True)


def server_tools(folder, registry, pin):
    """The tools that a server lists, from the folder if it was asked before."""
    name = re.sub(r"\W+", "_", pin).strip("_")
    kept = folder / "tools" / f"{name}.json"
    if not kept.exists():
        command = install(folder / registry / name, registry, pin)
        tools = list_tools([*command, *SERVERS[registry][pin].split()], folder / "home")
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(tools, indent=1))
    return json.loads(kept.read_text())


def install(folder, registry, pin):
    """Install a package with its dependencies into a folder of its own; the command that starts it."""
    if registry == "npm":
        package = re.sub(r"(?<=.)@[^@]*$", "", pin)
        root = folder / "node_modules" / package
        if not root.exists():
            folder.mkdir(parents=True, exist_ok=True)
            quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            call(["npm", "install", "--prefix", folder, *quiet, pin])
        commands = json.loads((root / "package.json").read_text())["bin"]
        return ["node", root / (commands if isinstance(commands, str) else next(iter(commands.values())))]
    package = pin.split("==")[0]
    if not (folder / "done").exists():
        call([sys.executable, "-m", "venv", "--without-pip", "--clear", folder])
        call([sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-input", pin])
        (folder / "done").touch()
    code = (
        "import sys, importlib.metadata as m\n"
        "print(next(e.name for e in m.distribution(sys.argv[1]).entry_points if e.group == 'console_scripts'))"
    )
    return [folder / "bin" / call([folder / "bin" / "python", "-c", code, package]).strip()]


def call(command):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=1200
    )
    if done.returncode:
        raise OSError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def list_tools(command, home):
    """The tools of the MCP server that a command starts: without a network but for loopback, and ended with all its children."""
    home.mkdir(parents=True, exist_ok=True)
    alone = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    shell = ["sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **ENVIRONMENT}
    with (home / "stderr").open("wb") as errors:
        server = subprocess.Popen(
            [*alone, *shell, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=home,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            hello = {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "check", "version": "1"},
            }
            ask(server, 1, "initialize", hello)
            send(server, {"method": "notifications/initialized"})
            tools, cursor = [], {}
            while cursor is not None:
                page = ask(server, 2 + len(tools), "tools/list", cursor)
                tools += page["tools"]
                cursor = {"cursor": page["nextCursor"]} if page.get("nextCursor") else None
            return tools
        except OSError as error:
            raise OSError(f"{error}; {(home / 'stderr').read_text(errors='replace').strip()[-300:]}") from None
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            server.stdout.close()


def send(server, message):
    server.stdin.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")
    server.stdin.flush()


def ask(server, number, method, params):
    send(server, {"id": number, "method": method, "params": params})
    deadline, pending = time.monotonic() + SECONDS, b""
    while True:
        ready, _, _ = select.select([server.stdout], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise OSError(f"no answer to {method}")
        chunk = os.read(server.stdout.fileno(), 1 << 20)
        if not chunk:
            raise OSError("it ended")
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:  # a greeting
                continue
            if isinstance(message, dict) and message.get("id") == number and "method" not in message:
                if "error" in message:
                    raise OSError(f"{method}: {message['error']}")
                return message["result"]


if __name__ == "__main__":
    main()
