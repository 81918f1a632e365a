"""Rollouts from elsewhere: the format of SGLang's `/generate`, an importer of recorded answers, a
server, and an engine that samples on servers."""
