# A peer in a container. It sells WebAssembly and, to its own account only,
# processes of this image: there is no bubblewrap in it, and containers can
# rarely nest sandboxes. Peers reach it on 7419; publish the API (7420) only to
# yourself, and name what clients call it in PCM_API_HOSTS.
#
#   docker build --build-arg VERSION=$(git describe --always) -t pcm .
#   docker run -v pcm:/data -p 7419:7419/udp -p 7419:7419/tcp pcm
#   docker exec CONTAINER pcm --data /data invite

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN make build VERSION="$VERSION"

FROM debian:12-slim
RUN useradd --system --uid 7419 --create-home --home-dir /data --shell /usr/sbin/nologin pcm && chmod 700 /data
COPY --from=build /src/bin/pcm /usr/local/bin/pcm
USER pcm
ENV PCM_DATA=/data
VOLUME /data
EXPOSE 7419/udp 7419/tcp
STOPSIGNAL SIGTERM
ENTRYPOINT ["pcm"]
CMD ["up", "--data", "/data", "--listen", "/ip4/0.0.0.0/udp/7419/quic-v1", "--listen", "/ip4/0.0.0.0/tcp/7419"]
