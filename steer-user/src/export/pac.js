function steerTarget(url) {
    var match = /^([a-z]+):\/\/([^\/?#]*)/i.exec(url);
    if (!match) {
        return null;
    }
    var known = { http: 80, ws: 80, https: 443, wss: 443 };
    var port = /:([0-9]+)$/.exec(match[2]);
    return port ? parseInt(port[1], 10) : known[match[1].toLowerCase()] || null;
}

function steerAddress(host) {
    var parts = /^([0-9]+)\.([0-9]+)\.([0-9]+)\.([0-9]+)$/.exec(host);
    if (!parts) {
        return null;
    }
    return ((+parts[1] * 256 + +parts[2]) * 256 + +parts[3]) * 256 + +parts[4];
}

function FindProxyForURL(url, host) {
    var port = steerTarget(url);
    var name = host.toLowerCase().replace(/\.$/, "");
    var address = steerAddress(name);
    for (var i = 0; port !== null && i < steerSets.length; i++) {
        var set = steerSets[i];
        var listed = false, j;
        for (j = 0; j < set.ports.length; j++) {
            listed = listed || (set.ports[j][0] <= port && port <= set.ports[j][1]);
        }
        if (!listed) {
            continue;
        }
        if (address !== null) {
            for (j = 0; j < set.addresses.length; j++) {
                if (set.addresses[j][0] <= address && address <= set.addresses[j][1]) {
                    return "DIRECT";
                }
            }
            continue;
        }
        for (j = 0; j < set.names.length; j++) {
            if (set.names[j].test(name)) {
                return "DIRECT";
            }
        }
    }
    return steerOther;
}
