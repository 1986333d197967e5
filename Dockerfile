# A desktop for an ordinary user, or any uid, on a root that may be read-only: docker run -p 6080:6080 jupyter-desktop
# docker build --target slim gives the server without the desktop, to build on: docs/container.md.
FROM oven/bun:1.4.5-slim AS build
WORKDIR /build
COPY package.json bun.lock bunfig.toml ./
COPY test/package.json test/
RUN bun install --frozen-lockfile --filter jupyter-desktop
COPY server.ts build.ts xstartup ./
COPY viewer viewer
RUN bun run build

FROM debian:bookworm-slim AS slim
# Bun is most of the size and changes least: its layer stays when the server is new.
COPY --from=build /usr/local/bin/bun /usr/local/bin/bun
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libnss-extrausers tigervnc-standalone-server tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --shell /bin/bash --uid 1000 desktop \
    # OpenShift gives a uid that nobody knows, and group 0: the entry point gives it a name.
    && chgrp 0 /home/desktop && chmod 770 /home/desktop \
    && sed -i 's/^passwd:.*/& extrausers/' /etc/nsswitch.conf \
    && mkdir -p /var/lib/extrausers && ln -sf /tmp/.passwd /var/lib/extrausers/passwd \
    && ln -s /opt/jupyter-desktop/jupyter-desktop /usr/local/bin/jupyter-desktop \
    && ln -s /opt/jupyter-desktop/jupyter-desktop /usr/local/bin/jupyterhub-singleuser
COPY LICENSE jupyter-desktop docker-entrypoint.sh /opt/jupyter-desktop/
COPY --from=build /build/dist /opt/jupyter-desktop/dist
ENV HOME=/home/desktop
USER 1000
WORKDIR /home/desktop
EXPOSE 6080
# By the server's own socket, so that it holds with any port and prefix, also a Hub's.
HEALTHCHECK --start-period=10s --timeout=5s CMD ["jupyter-desktop", "status"]
# An init as PID 1 takes in what the desktop leaves behind.
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/jupyter-desktop/docker-entrypoint.sh"]

FROM slim
USER 0
RUN HOME=/root jupyter-desktop setup --yes \
    && apt-get install -y --no-install-recommends firefox-esr fonts-liberation \
    && rm -rf /var/lib/apt/lists/*
USER 1000
