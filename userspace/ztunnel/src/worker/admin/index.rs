//! The page at `/`.

pub(super) const HTML: &str = "text/html; charset=utf-8";

pub(super) const PAGE: &str = "<!DOCTYPE html>
<html lang=\"en\">
<head><meta charset=\"utf-8\"><title>ztunnel</title></head>
<body>
<h1>ztunnel</h1>
<table>
<tr><td><a href=\"config_dump\">GET /config_dump</a></td>
<td>what is known of the mesh, certificates, connections</td></tr>
<tr><td><a href=\"connections\">GET /connections</a></td>
<td>connections that the worker carries</td></tr>
<tr><td><a href=\"certificates\">GET /certificates</a></td>
<td>certificates of this node's identities, and trust anchors</td></tr>
<tr><td>GET /explain?source=NAMESPACE/POD&amp;destination=NAMESPACE/SERVICE:PORT</td>
<td>what would become of a connection, and why</td></tr>
<tr><td><a href=\"healthz/ready\">GET /healthz/ready</a></td>
<td>whether it is ready, or what it waits for</td></tr>
<tr><td>GET /debug/pprof/profile?seconds=10</td>
<td>where processor time goes, for <code>go tool pprof</code></td></tr>
<tr><td><a href=\"debug/pprof/heap\">GET /debug/pprof/heap</a></td>
<td>how much memory is in use, in all</td></tr>
<tr><td>POST /logging?level=[TARGET=]LEVEL,…</td>
<td>the worker's log filter; without a level it is only told, with reset it begins anew</td></tr>
<tr><td>POST /quitquitquit</td>
<td>ends the worker; the broker starts the next, and its connections end</td></tr>
</table>
</body>
</html>
";
