# Built with `docker build -t durward .` or `buildah build -t durward .`; put your durward.yaml at
# /etc/durward/durward.yaml, and a volume at /var/lib/durward if revocations are to outlive the container.

# Any image with Go, a shell and CA certificates will do: set BUILDER to one of your own registry's.
ARG BUILDER=docker.io/library/golang:1.26

FROM ${BUILDER} AS build
WORKDIR /src

# The modules have a layer of their own: editing the code does not fetch them again.
COPY go.mod go.sum ./
RUN go mod download

COPY . .
ARG VERSION=dev
# No cgo: with nothing to link to, the program needs no files beside itself. -trimpath keeps the builder's
# paths out of it, so the same source and Go version make the same binary anywhere.
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/durward ./cmd/durward

# An image from scratch has no mkdir; the directory is made here and copied with its owner below.
RUN mkdir /out/state

FROM scratch

# For issuers, upstreams and feeds that are reached over TLS and name no ca_file.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/durward /durward

# Journal, snapshot and admin token. Owned by the user below, and so is a new volume mounted over it.
COPY --from=build --chown=65532:65532 /out/state /var/lib/durward
ENV STATE_DIRECTORY=/var/lib/durward
VOLUME /var/lib/durward

# By number, so that Kubernetes' runAsNonRoot can tell that it is not root.
USER 65532:65532

# There is no shell or curl to ask with, so the program asks itself. Docker and podman heed it; Kubernetes has probes.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["/durward", "health", "-config", "/etc/durward/durward.yaml"]

ENTRYPOINT ["/durward"]
CMD ["serve", "-config", "/etc/durward/durward.yaml"]
