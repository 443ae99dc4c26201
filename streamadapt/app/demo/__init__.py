"""``streamadapt demo``: a broker, a stream and an engine on this machine."""
