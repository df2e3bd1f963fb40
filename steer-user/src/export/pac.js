function steerPort(url) {
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

// How specific the most specific pattern is that the name matches; 0: none does.
function steerSpecific(patterns, name) {
    var most = 0;
    for (var i = 0; i < patterns.length; i++) {
        var pattern = patterns[i];
        if (pattern === name) {
            return 1000;
        }
        var expression = "^" + pattern.replace(/\./g, "\\.").replace(/\*/g, ".*") + "$";
        if (pattern.length > most && new RegExp(expression).test(name)) {
            most = pattern.length;
        }
    }
    return most;
}

// Whether one of the ranges has the number.
function steerHas(ranges, number) {
    for (var i = 0; i < ranges.length; i++) {
        if (ranges[i][0] <= number && number <= ranges[i][1]) {
            return true;
        }
    }
    return false;
}

function FindProxyForURL(url, host) {
    var port = steerPort(url);
    var name = host.toLowerCase().replace(/\.$/, "");
    var address = steerAddress(name);
    var least = Math.max(1, steerSpecific(steerExceptions, name));
    for (var i = 0; port !== null && i < steerSets.length; i++) {
        var set = steerSets[i];
        if (steerHas(set.ports, port) &&
            (address === null ? steerSpecific(set.names, name) >= least : steerHas(set.addresses, address))) {
            return "DIRECT";
        }
    }
    return steerOther;
}
