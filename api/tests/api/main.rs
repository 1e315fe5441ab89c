//! The API over a real manager: as the stock `docker` client sees it, and as raw HTTP.

mod docker_client;
mod http;
mod support;
