//! Image digests: there is no registry behind this daemon, so clients go on with the tag.

use axum::extract::Path;

use crate::error::ApiError;

/// Any error lets `docker service create` go on; this one says why.
pub(super) async fn inspect(Path(image): Path<String>) -> ApiError {
    let image = image.strip_suffix("/json").unwrap_or(&image);
    ApiError::not_found("digest of image", &format!("`{image}`"))
}
