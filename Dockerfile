# jupyter-desktop with XFCE, for an ordinary user: docker run -p 6080:6080 jupyter-desktop
FROM oven/bun:1.4.5-slim AS build
WORKDIR /build
COPY package.json bun.lock bunfig.toml ./
RUN bun install --frozen-lockfile --production
COPY viewer viewer
RUN bun viewer/build.ts

FROM debian:bookworm-slim
COPY --from=build /usr/local/bin/bun /usr/local/bin/bun
WORKDIR /opt/jupyter-desktop
COPY package.json server.ts xstartup ./
COPY --from=build /build/node_modules node_modules
COPY --from=build /build/viewer/dist viewer/dist
RUN bun server.ts setup --yes \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir -m 1777 -p /tmp/.X11-unix \
    && useradd --create-home --shell /bin/bash --uid 1000 desktop
USER desktop
WORKDIR /home/desktop
EXPOSE 6080
HEALTHCHECK --start-period=10s CMD ["bun", "-e", "process.exit((await fetch('http://127.0.0.1:6080/healthz')).ok ? 0 : 1)"]
# An init as PID 1 ends what the desktop leaves behind.
ENTRYPOINT ["/usr/bin/tini", "--", "bun", "/opt/jupyter-desktop/server.ts"]
CMD ["--host", "0.0.0.0"]
